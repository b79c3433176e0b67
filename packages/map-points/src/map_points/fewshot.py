"""Few-shot classification: one finetuning run per fold, and the statistics over all of them."""

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from signal import Signals
from typing import Any

from map_core.commands.standard import configs
from map_core.errors import RunStopped, UserError
from map_core.paths import expand_user
from map_core.ranges import check, refuse_without_effect
from map_core.runs.files import require_folder
from map_core.runs.notes import is_main_process, tell
from map_core.runs.summary import any_summary, refuse_training_run, write_config, write_summary
from map_core.tasks.classification import ClassificationConfig, FinetuneTask
from map_core.tasks.domain import OpenedData
from map_core.tasks.weights import read_description
from map_core.training import TrainingConfig, train
from map_points.data import (
    FewShotEpisode,
    PointDataConfig,
    find_folds,
    has_evaluation,
    read_clouds,
    read_fold,
    require_classes,
    sample_fold,
)
from map_points.domain import DOMAIN, as_opened_data, refuse_other_channels, refuse_untrained_channels
from map_points.evaluation import PROTOCOLS
from map_points.factory import PointModelConfig

TASK = "fewshot"


@dataclass
class FoldsConfig:
    """Which few-shot folds to run.

    Args:
        way: Classes of a fold.
        shot: Training clouds of each class.
        folds: How many folds, counted from 0.
        queries: Clouds of each class to classify in generated folds; published ones have 20.
        seed: Seed of generated folds.
    """

    way: int = 5
    shot: int = 10
    folds: int = 10
    queries: int = 20
    seed: int = 0

    def validate(self) -> None:
        for name, least in (("way", 2), ("shot", 1), ("folds", 1), ("queries", 1)):
            if getattr(self, name) < least:
                raise UserError(f"fewshot.{name} must be at least {least}; got {getattr(self, name)}")
        check("fewshot", self, seeds=("seed",))


@dataclass
class FewShotConfig:
    """Few-shot classification over several folds; the weights of each fold are those of its last epoch.

    Args:
        data: "fewshot_pkl" reads the published folds; from any other labelled source folds are generated, and
            the summary says so.
        fewshot: Ways, shots and folds.
        model: The classifier.
        objective: Loss and label smoothing.
        training: Training of each fold.
        init: A pretraining run or weights file to start every fold from; from scratch when not given.
        init_may_differ: Model settings that are meant to differ from those of init although the weights fit, such as
            order.
        resume: 'auto' keeps finished folds and continues the one that was interrupted.
        out: Directory; every fold is a finetuning run in it.
    """

    data: PointDataConfig = field(default_factory=PointDataConfig)
    fewshot: FoldsConfig = field(default_factory=FoldsConfig)
    model: PointModelConfig = field(default_factory=PointModelConfig)
    objective: ClassificationConfig = field(default_factory=ClassificationConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    init: str | None = None
    init_may_differ: list[str] | None = None
    resume: str | None = None
    out: str = "runs/fewshot"


def open_folds(data: PointDataConfig, config: FoldsConfig) -> Iterator[OpenedData]:
    """Yield the folds: published ones from their files, else generated ones.

    Raises:
        UserError: the files or classes cannot provide such folds, or a setting of generated folds is set for published
            ones.
    """
    config.validate()
    data.validate()
    if data.holdout or data.subset is not None:
        raise UserError("data.holdout and data.subset do not apply to few-shot folds: leave them out")
    published = data.source == "fewshot_pkl"
    if published:
        refuse_without_effect("fewshot", config, "queries", "seed", because="data.source fewshot_pkl")
    if not published and not has_evaluation(data):
        raise UserError(
            f"{data.root} has training clouds only, and few-shot folds classify others: add a split val or test, or "
            "name one with --data.eval_split"
        )
    splits = None if published else (read_clouds(data, "train"), read_clouds(data, "test"))
    if splits is not None:
        require_classes(*splits, data)
    if published:  # all of them are there before the first is trained on
        find_folds(data.root_path, config.way, config.shot, range(config.folds))
    for fold in range(config.folds):
        if splits is None:
            episode = read_fold(data.root_path, config.way, config.shot, fold)
        else:
            train_clouds, test_clouds = splits
            episode = sample_fold(
                train_clouds,
                test_clouds,
                way=config.way,
                shot=config.shot,
                queries=config.queries,
                fold=fold,
                seed=config.seed,
            )
        identity = {} if published else {"fewshot.queries": config.queries, "fewshot.seed": config.seed}
        yield _fold_data(episode, data, f"{kind_of_folds(data)} fold {fold}", identity)


def kind_of_folds(data: PointDataConfig) -> str:
    """``published`` or ``generated``."""
    return "published" if data.source == "fewshot_pkl" else "generated"


def _fold_data(
    episode: FewShotEpisode, config: PointDataConfig, description: str, identity: Mapping[str, Any]
) -> OpenedData:
    evaluated_on = f"queries of the {description}"
    data = as_opened_data(config, description, episode.train, episode.test, evaluated_on)
    return replace(data, identity=identity)


def run_folds(config: FewShotConfig) -> dict[str, Any]:
    """Train and measure every fold, write ``out/summary.json`` and return it.

    The summary has the accuracy of each fold, and their mean and sample standard deviation.

    Raises:
        UserError: a directory in use or of another training run, a model of other channels, or what any fold raises.
        RunStopped: a signal stopped a fold, whose checkpoint was saved.
    """
    if config.resume not in (None, "auto"):
        raise UserError(f"resume must be auto for few-shot folds; got {config.resume!r}")
    out = expand_user(config.out)
    require_folder(out)
    if any_summary(out).get("task") != TASK:
        refuse_training_run(out, replaced="config.yaml and summary.json")
    if config.init is not None:
        refuse_untrained_channels(config.data.channels, read_description(config.init))
    refuse_other_channels(config.data, config.model)
    accuracies, seconds = [], 0.0
    for fold, data in enumerate(open_folds(config.data, config.fewshot)):
        directory = out / f"fold_{fold}"
        run = configs(DOMAIN).finetune(
            data=config.data,
            model=replace(config.model),
            objective=config.objective,
            training=config.training,
            init=config.init,
            init_may_differ=config.init_may_differ,
            resume="auto" if config.resume and (directory / "checkpoints").is_dir() else None,
            out=str(directory),
        )
        fold_summary = train(
            FinetuneTask(DOMAIN, run, data), run.training, directory, resume=run.resume, run_config=run
        )
        if fold_summary["stopped_by"]:
            raise RunStopped(Signals[fold_summary["stopped_by"]])
        accuracies.append(float(fold_summary["test_accuracy"]))
        seconds += float(fold_summary["seconds"])
    environment = {key: fold_summary[key] for key in ("versions", "commit", "device", "processes")}
    summary = {
        "task": TASK,
        "init": config.init,
        "folds": kind_of_folds(config.data),
        "way": config.fewshot.way,
        "shot": config.fewshot.shot,
        "test_accuracy_mean": statistics.mean(accuracies),
        "test_accuracy_std": statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
        "test_accuracy_of_folds": accuracies,
        "protocol": f"last epoch of each fold: {PROTOCOLS['no_vote']}; sample standard deviation over folds",
        "seconds": seconds,
        **environment,
    }
    if is_main_process():
        write_config(out, config)
        write_summary(out, summary)
    tell(
        f"{summary['folds']} folds, {summary['way']}-way {summary['shot']}-shot: "
        f"{summary['test_accuracy_mean']:.2f} +- {summary['test_accuracy_std']:.2f} % over "
        f"{len(accuracies)} folds -> {out / 'summary.json'}"
    )
    return summary
