"""The commands that run a trained model (evaluate, predict, features, reconstruct), written once for every domain."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from map_core.errors import UserError, visible
from map_core.paths import expand_user, is_device
from map_core.ranges import check, refuse_without_effect
from map_core.runs.files import explaining_disk_errors, require_file, require_folder
from map_core.runs.notes import is_main_process, tell, tell_of
from map_core.runs.pictures import require_picture
from map_core.runs.summary import SUMMARY_FILE, describe_run, refuse_training_run, write_summary
from map_core.tasks.domain import Domain, OpenedData, Samples
from map_core.tasks.embedding_page import is_page, page_file, write_page
from map_core.tasks.evaluation import (
    ROWS,
    EvaluationConfig,
    Stopwatch,
    choose_device,
    class_totals,
    classification_metrics,
    extract_features,
)
from map_core.tasks.features import (
    SplitFeatures,
    is_score,
    remove_score,
    save_arrays,
    score_file,
    write_features,
)
from map_core.tasks.parts import results_in_parts
from map_core.tasks.predictions import write_predictions
from map_core.tasks.pretraining import inputs_to_draw, load_objective
from map_core.tasks.weights import read_description

Extract = Callable[..., tuple[np.ndarray, np.ndarray]]  # extract_features of a run's model


def evaluate(domain: Domain, config: Any) -> None:
    """Evaluate a run, print its measures and write summary.json."""
    out = expand_user(config.out)
    require_folder(out)
    config.evaluation.validate()
    refuse_training_run(out, replaced=SUMMARY_FILE)
    model_kind = read_description(config.init).get("holds", "")
    evaluator = domain.evaluators.get(model_kind)
    if evaluator is None:
        evaluate_classifier(domain, config, out)
    elif is_main_process():  # these evaluators work in one process
        measures = evaluator(config)
        with explaining_disk_errors(f"write the measures into {out}", then="repeat the command"):
            write_measures(out, config.init, measures)


def write_measures(out: Path, init: str, measures: dict[str, Any]) -> None:
    """Print the measures of a run and write them into ``out``."""
    if "protocol" in measures:
        print(measures["protocol"])
    print(f"evaluated on {visible(measures['evaluated_on'])}")
    for name, value in measures.items():
        if name.startswith("test_"):
            print(f"{visible(name):26} {value:.4g}")
    out.mkdir(parents=True, exist_ok=True)
    write_summary(out, {"task": "evaluate", "init": init, **measures})
    tell(f"-> {out / 'summary.json'}")


def evaluate_classifier(domain: Domain, config: Any, out: Path) -> None:
    """Measure the accuracies of a classifier, in one process or several."""
    model, classes = domain.models.classifier(config.init)
    data = domain.open_data(
        config.data, domain.models.read_model_config(config.init), "evaluate", read_description(config.init)
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
                gather=parts.collector("evaluation"),
            )
        if not is_main_process():
            return
        if data.skipped().count:
            tell(data.skipped().note)
        protocol = domain.protocol(config.evaluation)
        processes = parts.peers.count
        measures = {
            **({"protocol": protocol} if protocol else {}),
            "evaluated_on": data.evaluated_on,
            **classification_metrics(class_totals(logits, labels)),
            f"{domain.sample}s": len(data.evaluation),
            **({"processes": processes} if processes > 1 else {}),
            **watch.report(parts.computed // max(len(parts.passes), 1)),
        }
        with parts.writing_result():
            write_measures(out, config.init, measures)


def predict(domain: Domain, config: Any) -> None:
    """Write a CSV with the most probable classes of each file."""
    check("", config, at_least_one=("top",))
    config.evaluation.validate()
    out = expand_user(config.out)
    require_file(out)
    model, classes = domain.models.classifier(config.init)
    files = getattr(config, f"{domain.sample}s")
    model_config = domain.models.read_model_config(config.init)
    samples = domain.open_files(files, config.data, model_config, read_description(config.init))
    with results_in_parts(out, config) as parts:
        logits, _ = domain.logits(
            model,
            samples,
            config.evaluation,
            collate=domain.collate,
            title="predict",
            labelled=False,
            gather=parts.collector("predictions"),
        )
        if is_main_process():
            probabilities = (rows.softmax(dim=1).numpy() for rows in logits.split(ROWS))
            with parts.writing_result():
                write_predictions(out, domain.sample, samples.names, classes, probabilities, top=config.top)


def features(domain: Domain, config: Any) -> None:
    """Write features of files, or of the run's training and evaluation splits with a kNN score."""
    check("", config, at_least_one=("neighbors",))
    config.evaluation.validate()
    refuse_protocol(config.evaluation)
    files, out = getattr(config, f"{domain.sample}s"), expand_user(config.out)
    if files is not None:
        because = f"--{domain.sample}s, which have no labels to score by"
        refuse_without_effect("", config, "neighbors", because=because)
    require_file(out)
    if config.report:
        if is_device(out):
            raise UserError(
                f"--report writes a page beside {out}, which is no file; give --out a file's name"
            )
        require_beside(page_file(out), out, "page", is_page)
    if files is None and not is_device(out):
        require_beside(score_file(out), out, "score of the features", is_score)
    model, model_config = domain.models.encoder(config.init), domain.models.read_model_config(config.init)
    extract = partial(extract_features, model, config=config.evaluation, collate=domain.collate)
    description = read_description(config.init)
    if files is not None:
        samples = domain.open_files(files, config.data, model_config, description)
        features_of_files(domain, config, samples, extract)
    else:
        data = domain.open_data(config.data, model_config, "features", description)
        features_of_run(domain, config, data, extract)


def require_beside(file: Path, out: Path, what: str, is_earlier: Callable[[Path], bool]) -> None:
    """Check, before anything is computed, that ``what`` can be written to ``file``, beside ``out``.

    Raises:
        UserError: it cannot, ``out`` has that name, or there is a file that is no earlier one of its kind.
    """
    require_file(file)
    if file == out:
        raise UserError(f"{out} is where the {what} goes; give --out another name, such as x.npz")
    if file.exists() and not is_earlier(file):
        raise UserError(f"{file}, where the {what} goes, holds something else; give --out another name")


def features_of_files(domain: Domain, config: Any, samples: Samples, extract: Extract) -> None:
    """Write the features of samples without labels, with the names of their files."""
    out = expand_user(config.out)
    with results_in_parts(out, config) as parts:
        values, _ = extract(samples=samples, gather=parts.collector("features"))
        if is_main_process():
            with parts.writing_result():
                remove_score(out)
                save_arrays(out, {"features": values, "names": np.array(samples.names)})
                if config.report:
                    labels = np.zeros(len(values), dtype=np.int64)
                    unlabelled = SplitFeatures(values, labels, samples.names)
                    write_report(domain, config, out, unlabelled, samples, ())


def features_of_run(domain: Domain, config: Any, data: OpenedData, extract: Extract) -> None:
    """Write the features of a run's training and evaluation splits, and their kNN score where they have classes."""
    out = expand_user(config.out)
    split_features, split_samples = {}, {}
    if data.description and is_main_process():
        tell_of(out, data.description)
    with results_in_parts(out, config) as parts:
        for split, samples in (("train", data.plain_train), ("test", data.evaluation)):
            if isinstance(samples, Samples):
                title = f"features of {split}"
                values, labels = extract(samples=samples, title=title, gather=parts.collector(split))
                split_features[split] = SplitFeatures(values, labels, samples.names)
                split_samples[split] = samples
        if is_main_process():
            facts = {"data": data.description, **describe_run(choose_device(config.evaluation.device))}
            with parts.writing_result():
                write_features(
                    out,
                    split_features,
                    data.classes,
                    neighbors=config.neighbors,
                    evaluated_on=data.evaluated_on,
                    facts=facts,
                )
                if config.report:
                    split = "train" if "train" in split_features else "test"
                    write_report(
                        domain, config, out, split_features[split], split_samples[split], data.classes
                    )


def refuse_protocol(config: EvaluationConfig) -> None:
    """Refuse, for features, a domain's voting protocols: no head is run, and each sample is read once.

    Raises:
        UserError: a setting that the domain adds differs from its default.
    """
    core_settings = {field.name for field in fields(EvaluationConfig)}
    domain_settings = [field.name for field in fields(config) if field.name not in core_settings]
    refuse_without_effect(
        "evaluation", config, *domain_settings, because="features, which are read once, without votes"
    )


def write_report(
    domain: Domain, config: Any, out: Path, split: SplitFeatures, samples: Samples, classes: Sequence[str]
) -> None:
    """Write the page of features beside them."""
    preprocessing = read_description(config.init)

    def picture(index: int) -> np.ndarray:
        return domain.thumbnail(samples, index, preprocessing)

    title = f"Features of {config.init}"
    write_page(page_file(out), title, split, classes, picture, sample=domain.sample)


def reconstruct(domain: Domain, config: Any) -> None:
    """Write a picture of what a pretrained model reconstructs."""
    check("", config, at_least_one=("count",), shares_below_one=("mask_ratio",))
    files, out = getattr(config, f"{domain.sample}s"), expand_user(config.out)
    if files is not None:
        refuse_without_effect("", config, "split", because=f"--{domain.sample}s")
    require_picture(out)
    pretrained = load_objective(domain, config.init)
    if files is not None:
        samples = domain.open_files(files, config.data, pretrained.model, read_description(config.init))
        data = OpenedData(f"{files}", (), None, None, samples)
    else:
        purpose: Any = "pretrain" if config.split == "train" else "evaluate"
        data = domain.open_data(config.data, pretrained.model, purpose, read_description(config.init))
        split = data.plain_train if config.split == "train" else data.evaluation
        assert isinstance(split, Samples)
        samples = split
    inputs = inputs_to_draw(samples, config.count)
    data = replace(data, preprocessing=read_description(config.init))
    with explaining_disk_errors(f"write {out}", then="repeat the command"):
        out.parent.mkdir(parents=True, exist_ok=True)
        domain.draw_picture(
            pretrained.objective, inputs, out, data=data, ratio=config.mask_ratio, seed=config.seed
        )
    tell_of(out, f"{len(inputs)} {domain.sample}s -> {out}")


def refuse_other_classes(
    data_classes: Sequence[str], model_classes: Sequence[str], *, data: str, init: str
) -> None:
    """Keep a classifier from being evaluated on labels that mean something else.

    Args:
        data_classes: Classes of the data.
        model_classes: Classes of the classifier.
        data: The data's name in the message.
        init: Where the classifier is from.

    Raises:
        UserError: the classes differ.
    """
    if tuple(data_classes) != tuple(model_classes):
        raise UserError(
            f"the classes of {data} are not those of {init}: "
            f"{len(data_classes)} classes {', '.join(data_classes[:4])}, ... "
            f"against {len(model_classes)} {', '.join(model_classes[:4])}, ...; "
            "evaluate on data with the same classes"
        )
