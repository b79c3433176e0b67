"""The commands that every domain has, written once over what the domain hands over."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from signal import Signals
from typing import Any, Literal

import numpy as np

from map_core.commands.command import as_defaults, section_of_run
from map_core.commands.costs import describe_costs
from map_core.commands.environment import describe_environment
from map_core.commands.options import Option, config_class
from map_core.errors import RunStopped, UserError, visible
from map_core.paths import expanded
from map_core.runs.files import require_file, require_folder
from map_core.runs.notes import is_main_process, note, tell
from map_core.runs.pictures import require_picture
from map_core.runs.run_directory import require_run_directory
from map_core.runs.summary import write_summary
from map_core.tasks.classification import FinetuneTask, LinearProbeTask
from map_core.tasks.domain import Domain, OpenedData, Samples
from map_core.tasks.embedding_page import page_file, write_page
from map_core.tasks.evaluation import (
    ROWS,
    Stopwatch,
    choose_device,
    class_totals,
    classification_metrics,
    extract_features,
)
from map_core.tasks.features import SplitFeatures, save_arrays, score_file, write_features
from map_core.tasks.monitors import MonitorConfig
from map_core.tasks.parts import results_in_parts
from map_core.tasks.predictions import write_predictions
from map_core.tasks.pretraining import PretrainTask, inputs_to_draw, load_objective
from map_core.tasks.weights import read_description
from map_core.training import Task, TrainingConfig, train

TRAINING = Option(TrainingConfig, "Epochs, batch, learning rate and the like.")
RESUME = Option(str | None, "'auto' continues the newest checkpoint in out; a path continues that one.", None)
START = Option(
    str | None, "A pretraining run or weights file to start from; from scratch when not given.", None
)
RESULTS = ("summary.json", "model.safetensors", "curves.png", "reconstructions.png")
MAY_DIFFER = Option(
    list[str] | None,
    "Settings of the model in which it is meant to differ from that of init although the weights fit, such as order.",
    None,
)


@dataclass(frozen=True)
class Configs:
    """The configurations of a domain's standard commands."""

    pretrain: type
    finetune: type
    evaluate: type
    predict: type
    features: type
    reconstruct: type
    info: type


@cache
def configs(domain: Domain) -> Configs:
    """Make the configurations of a domain's commands; its files are given as ``--images`` or ``--clouds``."""
    sample, files = domain.sample, f"{domain.sample}s"
    title = files.capitalize()
    model = Option(domain.models.config, "The model.")
    evaluation = Option(domain.evaluation, "Batch size, device and the like.")
    data_of_run = Option(domain.data, f"{title}; what is not given is as in the run.")
    some_files = f"{title}, as files or folders, without labels; the run's own data when not given."
    classifier = Option(str, "A finetuning or probing run, or its weights file.")
    run = Option(str, "A pretraining, finetuning or probing run, or its weights file.")
    return Configs(
        pretrain=config_class(
            "PretrainConfig",
            "Pretraining of an encoder without labels.",
            data=Option(domain.data, f"{title}; labels are not used."),
            model=replace(model, help="The encoder."),
            objective=Option(
                domain.objective, "What is hidden and how it is reconstructed.", forms=domain.objectives
            ),
            monitor=Option(MonitorConfig, "What is measured of the encoder between epochs."),
            training=TRAINING,
            init=replace(START, help="Start the encoder from this run or weights file."),
            init_may_differ=MAY_DIFFER,
            init_decoder=Option(
                bool, "Start decoder and head from there as well, to go on pretraining.", False
            ),
            resume=RESUME,
            out=Option(str, "Run directory.", "runs/pretrain"),
        ),
        finetune=config_class(
            "FinetuneConfig",
            "Training of a classifier, from a pretraining run or from scratch; the weights are the last epoch's.",
            data=Option(domain.data, f"Labelled {files}."),
            model=replace(model, help="The classifier."),
            objective=Option(domain.classification, "Loss, label smoothing and the like."),
            training=TRAINING,
            init=START,
            init_may_differ=MAY_DIFFER,
            resume=RESUME,
            out=Option(str, "Run directory.", "runs/finetune"),
        ),
        evaluate=config_class(
            "EvaluateConfig",
            "Measures of a trained model on the evaluation split, or on the held-out part.",
            init=replace(run, help="A finished run, or its weights file."),
            data=replace(data_of_run, help=f"Labelled {files}; what is not given is as in the run."),
            evaluation=evaluation,
            out=Option(str, "Folder for summary.json.", "runs/evaluate"),
        ),
        predict=config_class(
            "PredictConfig",
            f"Classes of {files}.",
            init=classifier,
            **{files: Option(str | list[str], f"{sample.capitalize()} file or folder, or a list of them.")},
            data=data_of_run,
            evaluation=evaluation,
            top=Option(int, "Classes a row, most probable first.", 5),
            out=Option(str, "CSV to write.", "predictions.csv"),
        ),
        features=config_class(
            "FeaturesConfig",
            f"Pooled features of {files}.",
            init=run,
            **{files: Option(str | list[str] | None, some_files, None)},
            data=data_of_run,
            evaluation=evaluation,
            neighbors=Option(int, "Neighbours of the kNN score, where there are labels and two splits.", 20),
            report=Option(
                bool, "Also write an HTML page beside out: a map of a sample and nearest neighbours.", False
            ),
            out=Option(str, "NPZ to write: features, labels and names of each split.", "features.npz"),
        ),
        reconstruct=config_class(
            "ReconstructConfig",
            "A picture of what a pretrained model reconstructs.",
            init=replace(run, help="Directory of a pretraining run."),
            **{files: Option(str | list[str] | None, some_files, None)},
            data=data_of_run,
            split=Option(Literal["train", "test"], "Which split of the run's data to draw.", "train"),
            count=Option(int, "Rows of the picture.", domain.rows),
            mask_ratio=Option(float | None, "Share to hide; as in the run when not given.", None),
            seed=Option(int, "Chooses what is hidden.", 0),
            out=Option(str, "Picture to write: PNG, or what its ending says.", "reconstructions.png"),
        ),
        info=config_class(
            "InfoConfig",
            "What is installed and what it can do; or what a model costs.",
            model=replace(model, help="The model that flops counts."),
            flops=Option(bool, "Print parameters, multiply-adds and tokens of the model instead.", False),
        ),
    )


def config_of(domain: Domain, command: str) -> type:
    """The configuration of a command."""
    return getattr(configs(domain), command)


def data_of_run(domain: Domain, given: dict[str, str]) -> dict[str, Any]:
    """The data settings of the run that ``--init`` names."""
    description = read_description(given["init"]) if "init" in given else {}
    values = domain.data_defaults(section_of_run(given, "data"), description, given)
    return as_defaults("data", domain.data, values)


def model_of_run(domain: Domain, given: dict[str, str]) -> dict[str, Any]:
    """The model of the run that ``--init`` names, and how its inputs were prepared."""
    model = domain.models.described(given["init"]) if "init" in given else None
    if model is None:
        return {}
    prepared = domain.data_defaults({}, read_description(given["init"]), given)
    return as_defaults("model", domain.models.config, vars(model)) | as_defaults(
        "data", domain.data, prepared
    )


def model_of_weights(domain: Domain, given: dict[str, str]) -> dict[str, Any]:
    """What the weights that ``--init`` names are tied to: a recipe's model of another kind gives way to theirs."""
    model = domain.models.described(given["init"]) if "init" in given else None
    tied = {} if model is None else {key: getattr(model, key) for key in domain.models.tied}
    return as_defaults("model", domain.models.config, tied)


def pretrain(domain: Domain, config: Any) -> None:
    """Pretrain an encoder."""
    train_task(partial(PretrainTask, domain), config)


def finetune(domain: Domain, config: Any) -> None:
    """Train a classifier."""
    train_task(partial(FinetuneTask, domain), config)


def linear_probe(domain: Domain, config: Any) -> None:
    """Train a linear classifier on frozen features."""
    train_task(partial(LinearProbeTask, domain), config)


def train_task(make: Callable[[Any], Task], config: Any) -> None:
    """Train as a configuration says.

    Args:
        make: Opens the data and builds the model of a configuration, once its results are known to have a place.
        config: Has the sections of ``make``, and ``training``, ``resume`` and ``out``.

    Raises:
        RunStopped: a signal asked it to stop.
    """
    out = expanded(config.out)
    require_run_directory(out, config.resume)
    task = make(config)
    config = fitted(config, len(task.train_data))
    summary = train(task, config.training, out, resume=config.resume, run_config=config)
    if summary["stopped_by"]:
        raise RunStopped(Signals[summary["stopped_by"]])
    tell(closing_line(out, summary))


def fitted(config: Any, samples: int) -> Any:
    """A configuration whose budget of samples, if it has one, is turned into epochs, which is said."""
    training = config.training.fitted(samples)
    if training != config.training:
        note(
            f"training.sample_budget {config.training.sample_budget} of {samples} samples: {training.epochs} epochs in "
            f"batches of {training.batch_size}, warmup {training.warmup_epochs:g} epochs, a checkpoint every "
            f"{training.checkpoint_epochs}"
        )
    return replace(config, training=training)


def closing_line(out: Path, summary: Mapping[str, Any]) -> str:
    """Say what a finished run measured, of what, and where everything is."""
    measures = [f"{name} {value:.4g}" for name, value in summary.items() if name.startswith("test_")]
    told = f"{', '.join(measures)} on {summary.get('evaluated_on')}; " if measures else ""
    files = [name for name in RESULTS if (out / name).exists()]
    return f"{told}results in {out}: {', '.join(files)}"


def evaluate(domain: Domain, config: Any) -> None:
    """Evaluate a run, print its measures and write summary.json."""
    out = expanded(config.out)
    require_folder(out)
    config.evaluation.validate()
    refuse_training_run(out)
    holds = read_description(config.init).get("holds", "")
    other = domain.evaluators.get(holds)
    if other and not is_main_process():
        return  # these work in one process
    summary = other(config) if other else evaluate_classifier(domain, config, out)
    if not is_main_process():
        return
    if "protocol" in summary:
        print(summary["protocol"])
    print(f"evaluated on {visible(summary['evaluated_on'])}")
    for name, value in summary.items():
        if name.startswith("test_"):
            print(f"{visible(name):26} {value:.4g}")
    out.mkdir(parents=True, exist_ok=True)
    write_summary(out, {"task": "evaluate", "init": config.init, **summary})
    tell(f"-> {out / 'summary.json'}")


def evaluate_classifier(domain: Domain, config: Any, out: Path) -> dict[str, Any]:
    """Accuracies of a classifier, for its summary; empty on other processes than the first."""
    model, classes = domain.models.classifier(config.init)
    data = domain.open_data(
        config.data, domain.models.described(config.init), "evaluate", read_description(config.init)
    )
    assert data.evaluation is not None
    refuse_other_classes(data.classes, classes, data=data.description, init=config.init)
    with results_in_parts(out, config) as parts:
        with Stopwatch(choose_device(config.evaluation.device)) as watch:
            logits, labels = domain.logits(
                model,
                data.evaluation,
                config.evaluation,
                collate=domain.collate,
                title="evaluate",
                gather=parts.of("evaluation"),
            )
        if not is_main_process():
            return {}
        measures = classification_metrics(class_totals(logits, labels))
    if data.skipped().count:
        tell(data.skipped().note)
    protocol = domain.protocol(config.evaluation)
    processes = parts.peers.count
    return {
        **({"protocol": protocol} if protocol else {}),
        "evaluated_on": data.evaluated_on,
        **measures,
        f"{domain.sample}s": len(data.evaluation),
        **({"processes": processes} if processes > 1 else {}),
        **watch.report(len(data.evaluation) - parts.reused),
    }


def predict(domain: Domain, config: Any) -> None:
    """Write a CSV with the most probable classes of each file."""
    at_least_one("top", config.top)
    config.evaluation.validate()
    out = expanded(config.out)
    require_file(out)
    model, classes = domain.models.classifier(config.init)
    files = getattr(config, f"{domain.sample}s")
    described = domain.models.described(config.init)
    samples = domain.open_files(files, config.data, described, read_description(config.init))
    with results_in_parts(out, config) as parts:
        logits, _ = domain.logits(
            model,
            samples,
            config.evaluation,
            collate=domain.collate,
            title="predict",
            gather=parts.of("predictions"),
        )
        if is_main_process():
            probabilities = (some.softmax(dim=1).numpy() for some in logits.split(ROWS))
            with parts.finishing():
                write_predictions(out, domain.sample, samples.names, classes, probabilities, top=config.top)


def features(domain: Domain, config: Any) -> None:
    """Write features of files, or of the run's training and evaluation splits with a kNN score."""
    at_least_one("neighbors", config.neighbors)
    config.evaluation.validate()
    files, out = getattr(config, f"{domain.sample}s"), expanded(config.out)
    require_file(out)
    if config.report:
        require_file(page_file(out))
        if page_file(out) == out:
            raise UserError(f"{out} is where the page goes; give --out another name, such as x.npz")
    if files is None:
        require_file(score_file(out))
        if score_file(out) == out:
            raise UserError(
                f"{out} is where the score of the features goes; give --out another name, such as x.npz"
            )
    model, described = domain.models.encoder(config.init), domain.models.described(config.init)
    extract = partial(extract_features, model, config=config.evaluation, collate=domain.collate)
    if files is not None:
        samples = domain.open_files(files, config.data, described, read_description(config.init))
        with results_in_parts(out, config) as parts:
            values, _ = extract(samples=samples, gather=parts.of("features"))
            if is_main_process():
                with parts.finishing():
                    save_arrays(out, {"features": values, "names": np.array(samples.names)})
                    if config.report:
                        unlabelled = SplitFeatures(
                            values, np.zeros(len(values), dtype=np.int64), samples.names
                        )
                        report(domain, config, out, unlabelled, samples, ())
        return
    data = domain.open_data(config.data, described, "features", read_description(config.init))
    measured, opened = {}, {}
    with results_in_parts(out, config) as parts:
        for split, samples_or_none in (("train", data.plain_train), ("test", data.evaluation)):
            if isinstance(samples_or_none, Samples):
                title = f"features of {split}"
                values, labels = extract(samples=samples_or_none, title=title, gather=parts.of(split))
                measured[split] = SplitFeatures(values, labels, samples_or_none.names)
                opened[split] = samples_or_none
        if is_main_process():
            told = {"neighbors": config.neighbors, "evaluated_on": data.evaluated_on}
            with parts.finishing():
                write_features(out, measured, data.classes, **told)
                if config.report:
                    split = "train" if "train" in measured else "test"
                    report(domain, config, out, measured[split], opened[split], data.classes)


def report(
    domain: Domain, config: Any, out: Path, split: SplitFeatures, samples: Samples, classes: Sequence[str]
) -> None:
    """Write the page of features beside them."""
    prepared = read_description(config.init)

    def picture(index: int) -> np.ndarray:
        return domain.thumbnail(samples, index, prepared)

    title = f"Features of {config.init}"
    write_page(page_file(out), title, split, classes, picture, sample=domain.sample)


def reconstruct(domain: Domain, config: Any) -> None:
    """Write a picture of what a pretrained model reconstructs."""
    at_least_one("count", config.count)
    files, out = getattr(config, f"{domain.sample}s"), expanded(config.out)
    require_picture(out)
    trained = load_objective(domain, config.init)
    if files is not None:
        samples = domain.open_files(files, config.data, trained.model, read_description(config.init))
        data = OpenedData(f"{files}", (), None, None, samples)
    else:
        purpose: Any = "pretrain" if config.split == "train" else "evaluate"
        data = domain.open_data(config.data, trained.model, purpose, read_description(config.init))
        split = data.plain_train if config.split == "train" else data.evaluation
        assert isinstance(split, Samples)
        samples = split
    inputs = inputs_to_draw(samples, config.count)
    out.parent.mkdir(parents=True, exist_ok=True)
    data = replace(data, preprocessing=read_description(config.init))
    domain.draw_picture(trained.objective, inputs, out, data=data, ratio=config.mask_ratio, seed=config.seed)
    tell(f"{len(inputs)} {domain.sample}s -> {out}")


def info(domain: Domain, config: Any) -> None:
    """Print versions, devices, the implementations of each operation, and the models; or what one model costs."""
    print(
        describe_costs(domain, config.model)
        if config.flops
        else "\n".join([describe_environment(), *domain.info()])
    )


def at_least_one(name: str, value: int) -> None:
    """Raise a :class:`UserError` for a count below one."""
    if value < 1:
        raise UserError(f"{name} must be at least 1; got {value}")


def refuse_training_run(out: Path) -> None:
    """Keep an evaluation from replacing what a training run left.

    Raises:
        UserError: ``out`` is the directory of one.
    """
    if (out / "checkpoints").is_dir():
        raise UserError(
            f"{out} is a training run, whose summary.json would be replaced; choose another --out"
        )


def refuse_other_classes(found: Sequence[str], trained: Sequence[str], *, data: str, init: str) -> None:
    """Keep a classifier from being evaluated on labels that mean something else.

    Args:
        found: Classes of the data.
        trained: Classes of the classifier.
        data: What the data is called.
        init: Where the classifier is from.

    Raises:
        UserError: they differ.
    """
    if tuple(found) != tuple(trained):
        raise UserError(
            f"the classes of {data} are not those of {init}: {len(found)} classes {', '.join(found[:4])}, ... "
            f"against {len(trained)} {', '.join(trained[:4])}, ...; evaluate on data with the same classes"
        )
