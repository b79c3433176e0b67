"""The commands that train, ``info``, and the configurations of all standard commands, written once for every domain."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from signal import Signals
from typing import Any, Literal

import torch

from map_core.commands.command import as_defaults, section_of_run
from map_core.commands.costs import describe_costs
from map_core.commands.environment import describe_environment
from map_core.commands.options import Option, config_class
from map_core.errors import RunStopped, UserError
from map_core.paths import expand_user
from map_core.runs.notes import note, tell
from map_core.runs.run_directory import require_run_directory
from map_core.runs.summary import SUMMARY_FILE
from map_core.tasks.classification import FinetuneTask, LinearProbeTask
from map_core.tasks.domain import Domain
from map_core.tasks.monitors import MonitorConfig
from map_core.tasks.pretraining import PretrainTask
from map_core.tasks.setting_values import format_options
from map_core.tasks.weights import read_description
from map_core.training import Task, TrainingConfig, train
from map_core.training.processes import resolved_training

TRAINING = Option(TrainingConfig, "Epochs, batch, learning rate and the like.")
RESUME = Option(str | None, "'auto' continues the newest checkpoint in out; a path continues that one.", None)
INIT = Option(
    str | None, "A pretraining run or weights file to start from; from scratch when not given.", None
)
RESULTS = (SUMMARY_FILE, "model.safetensors", "curves.png", "reconstructions.png")
MAY_DIFFER = Option(
    list[str] | None,
    "Model settings that are meant to differ from those of init although the weights fit, such as order.",
    None,
)


@dataclass(frozen=True)
class Configs:
    """The configurations of a domain's standard commands."""

    pretrain: type
    finetune: type
    linear_probe: type
    evaluate: type
    predict: type
    features: type
    reconstruct: type
    info: type


@cache
def configs(domain: Domain) -> Configs:
    """Make the configurations of a domain's commands; the option for its files is ``--images`` or ``--clouds``."""
    sample, files = domain.sample, f"{domain.sample}s"
    title = files.capitalize()
    model = Option(domain.models.config, "The model.")
    evaluation = Option(domain.evaluation, "Batch size, device and the like.")
    data_option = Option(domain.data, f"{title}; what is not given is as in the run.")
    files_help = f"{title}, as files or folders, without labels; the run's own data when not given."
    data_of_classes = Option(domain.data, f"Labelled {files}.")
    classification = Option(domain.classification, "Loss, label smoothing and the like.")
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
            monitor=Option(MonitorConfig, "What is measured on the encoder between epochs."),
            training=TRAINING,
            init=replace(INIT, help="Start the encoder from this run or weights file."),
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
            data=data_of_classes,
            model=replace(model, help="The classifier."),
            objective=classification,
            training=TRAINING,
            init=INIT,
            init_may_differ=MAY_DIFFER,
            resume=RESUME,
            out=Option(str, "Run directory.", "runs/finetune"),
        ),
        linear_probe=config_class(
            "LinearProbeConfig",
            "Training of a linear classifier on the frozen, pooled features of a pretrained encoder.",
            init=Option(str, "The run or weights file that has the encoder."),
            data=data_of_classes,
            model=replace(model, help="The encoder."),
            objective=classification,
            training=TRAINING,
            init_may_differ=MAY_DIFFER,
            resume=RESUME,
            out=Option(str, "Run directory.", "runs/linear-probe"),
        ),
        evaluate=config_class(
            "EvaluateConfig",
            "Measures of a trained model on the evaluation split, or on the held-out part.",
            init=replace(run, help="A finished run, or its weights file."),
            data=replace(data_option, help=f"Labelled {files}; what is not given is as in the run."),
            evaluation=evaluation,
            out=Option(str, "Folder for summary.json.", "runs/evaluate"),
        ),
        predict=config_class(
            "PredictConfig",
            f"Classes of {files}.",
            init=classifier,
            **{files: Option(str | list[str], f"{sample.capitalize()} file or folder, or a list of them.")},
            data=data_option,
            evaluation=evaluation,
            top=Option(int, "Classes per row, most probable first.", 5),
            out=Option(str, "CSV to write.", "predictions.csv"),
        ),
        features=config_class(
            "FeaturesConfig",
            f"Pooled features of {files}.",
            init=run,
            **{files: Option(str | list[str] | None, files_help, None)},
            data=data_option,
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
            **{files: Option(str | list[str] | None, files_help, None)},
            data=data_option,
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


def data_of_run(domain: Domain, explicit: dict[str, str]) -> dict[str, Any]:
    """The data settings of the run named by ``--init``.

    Raises:
        UserError: it holds a model of another domain.
    """
    description = read_description(explicit["init"]) if "init" in explicit else {}
    if description:
        domain.models.read_model_config(explicit["init"])  # before its settings are taken for this domain's
    values = domain.data_defaults(section_of_run(explicit, "data"), description, explicit)
    return as_defaults("data", domain.data, values)


def data_to_measure(domain: Domain, explicit: dict[str, str]) -> dict[str, Any]:
    """The same, for a command that reads the run's data where no files are given.

    Raises:
        UserError: ``--init`` names weights without a run, and no other setting says which data to read.
    """
    defaults = data_of_run(domain, explicit)
    names_data = any(name in explicit for name in ("data.root", "data.source", f"{domain.sample}s"))
    if "init" in explicit and not names_data and not section_of_run(explicit, "data"):
        init = explicit["init"]
        if read_description(init):  # otherwise there is no model either, which the command says
            raise UserError(
                f"{init} names no data, as the config.yaml of a run does: give --data.source folder --data.root "
                "FOLDER, or another --data.source"
            )
    return defaults


def model_of_run(domain: Domain, explicit: dict[str, str]) -> dict[str, Any]:
    """The model of the run named by ``--init``, and the preparation of its inputs."""
    model = domain.models.read_model_config(explicit["init"]) if "init" in explicit else None
    return {} if model is None else model_defaults(domain, model) | inputs_of_run(domain, explicit)


def inputs_of_run(domain: Domain, explicit: dict[str, str]) -> dict[str, Any]:
    """The preparation of the inputs of the run named by ``--init``, as data settings."""
    description = read_description(explicit["init"]) if "init" in explicit else {}
    return as_defaults("data", domain.data, domain.data_defaults({}, description, explicit))


def model_of_weights(domain: Domain, explicit: dict[str, str]) -> dict[str, Any]:
    """The model settings inherited from the weights that ``--init`` names; they override those of a recipe."""
    model = domain.models.read_model_config(explicit["init"]) if "init" in explicit else None
    return {} if model is None else inherited_settings(domain, model, read_description(explicit["init"]))


def model_defaults(domain: Domain, model: Any) -> dict[str, Any]:
    """The settings of a model, as defaults of a run that starts from its weights."""
    return as_defaults("model", domain.models.config, vars(model))


def inherited_settings(domain: Domain, model: Any, description: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a model that a run that starts from its described weights takes whatever its recipe says."""
    names = domain.models.trained_with(domain.models.inherited_settings, description)
    return as_defaults("model", domain.models.config, {name: getattr(model, name) for name in names})


def pretrain(domain: Domain, config: Any) -> None:
    """Pretrain an encoder."""
    train_task(partial(PretrainTask, domain), config)


def finetune(domain: Domain, config: Any) -> None:
    """Train a classifier."""
    train_task(partial(FinetuneTask, domain), config)


def linear_probe(domain: Domain, config: Any) -> None:
    """Train a linear classifier on frozen features."""
    train_task(partial(LinearProbeTask, domain), config)


def train_task(create_task: Callable[[Any], Task], config: Any) -> None:
    """Train according to a configuration.

    Args:
        create_task: Opens the data and builds the model; called once it is clear that results can be written.
        config: Has the sections that ``create_task`` reads, and ``training``, ``resume`` and ``out``.

    Raises:
        RunStopped: a signal stopped it.
    """
    out = expand_user(config.out)
    require_run_directory(out, config.resume)
    task = create_task(config)
    config = resolve_sample_budget(config, task)
    summary = train(task, config.training, out, resume=config.resume, run_config=config)
    if summary["stopped_by"]:
        raise RunStopped(Signals[summary["stopped_by"]])
    tell(closing_line(out, summary))


def resolve_sample_budget(config: Any, task: Task) -> Any:
    """A configuration whose budget of samples, if it has one, is converted to epochs, with a note on stderr."""
    samples = len(task.train_data)
    training = resolved_training(config.training, samples, pairs=task.mixes_pairs)
    if training != config.training:
        note(
            f"training.sample_budget {config.training.sample_budget} of {samples} samples: {training.epochs} epochs in "
            f"batches of {training.batch_size}, warmup {training.warmup_epochs:g} epochs, a checkpoint every "
            f"{training.checkpoint_epochs}, an evaluation every {training.evaluate_epochs}; "
            "--training.sample_budget null trains by --training.epochs"
        )
    return replace(config, training=training)


def closing_line(out: Path, summary: Mapping[str, Any]) -> str:
    """Report the scores of a finished run, on which data, and where its files are."""
    scores = [f"{name} {value:.4g}" for name, value in summary.items() if name.startswith("test_")]
    evaluation = f"{', '.join(scores)} on {summary.get('evaluated_on')}; " if scores else ""
    files = [name for name in RESULTS if (out / name).exists()]
    return f"{evaluation}results in {out}: {', '.join(files)}"


def info(domain: Domain, config: Any) -> None:
    """Print versions, devices, the implementations of each operation, and the models; or what one model costs.

    Raises:
        UserError: a model, but not ``--flops``; see also :func:`~map_core.commands.costs.describe_costs`.
    """
    default = asdict(type(config.model)())
    changes = {name: value for name, value in asdict(config.model).items() if value != default[name]}
    if changes and not config.flops:
        options = " ".join(format_options(changes, "model."))
        raise UserError(f"{options} has no effect without --flops: add --flops")
    print(
        describe_costs(domain, config.model)
        if config.flops
        else "\n".join([describe_environment(), *domain.info(), *describe_models(domain)])
    )


def describe_models(domain: Domain) -> list[str]:
    """Lines of ``info`` on every model and its size."""
    models, lines = domain.models, [f"models (parameters at {domain.outputs} classes)"]
    for name in models.names:
        with torch.device("meta"):
            model = models.create_classifier(models.config(name), domain.outputs)
        lines.append(f"  {name:30} {sum(p.numel() for p in model.parameters()):>12,}")
    return lines
