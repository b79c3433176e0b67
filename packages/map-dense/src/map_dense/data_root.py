"""Loops that read the data sets under the config's top-level ``data_root``, so that one option moves them all.

OpenMMLab's configs copy ``data_root`` into every data set and every annotation path while the file is read, before
``--cfg-options data_root=PATH`` is merged, which therefore changes nothing. The configs of this package leave it out
of their data sets instead, and name these loops, which fill it in.
"""

from collections.abc import Mapping
from typing import Any

from mmengine.fileio import isdir, join_path
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, TestLoop, ValLoop
from mmengine.utils import is_abs

from map_core import UserError


def config_data_root(config: Any) -> str:
    """The config's ``data_root``.

    Raises:
        UserError: it is not set, or no directory.
    """
    root = config.get("data_root")
    if not root:
        raise UserError("data_root is not set; add --cfg-options data_root=PATH")
    if not isdir(root):
        raise UserError(f"data_root ({root}) is no directory; set it by --cfg-options data_root=PATH")
    return str(root)


def with_data_root(dataloader: Any, config: Any) -> Any:
    """Copy a data loader's settings with ``data_root`` filled into every data set that has none; keep a built one.

    Raises:
        UserError: it is needed and is not set, or no directory.
    """
    if not isinstance(dataloader, Mapping):
        return dataloader
    return {**dataloader, "dataset": _with_data_root(dataloader["dataset"], config)}


def _with_data_root(dataset: Mapping[str, Any], config: Any) -> Mapping[str, Any]:
    if "dataset" in dataset:  # a wrapper: RepeatDataset, ClassBalancedDataset, ...
        return {**dataset, "dataset": _with_data_root(dataset["dataset"], config)}
    if "datasets" in dataset:  # ConcatDataset
        return {**dataset, "datasets": [_with_data_root(part, config) for part in dataset["datasets"]]}
    if dataset.get("data_root"):
        return dataset
    return {**dataset, "data_root": config_data_root(config)}


def with_annotation_paths(evaluator: Any, config: Any) -> Any:
    """Copy an evaluator's settings (or a list of them) with relative ``ann_file`` paths under ``data_root``.

    A built evaluator is kept.

    Raises:
        UserError: it is needed and is not set, or no directory.
    """
    if isinstance(evaluator, list | tuple):
        return [with_annotation_paths(part, config) for part in evaluator]
    path = evaluator.get("ann_file") if isinstance(evaluator, Mapping) else None
    if not path or is_abs(path):
        return evaluator
    return {**evaluator, "ann_file": join_path(config_data_root(config), path)}


@LOOPS.register_module()
class DataRootEpochBasedTrainLoop(EpochBasedTrainLoop):
    """mmengine's loop over epochs, on data sets under the config's ``data_root``."""

    def __init__(self, runner: Any, dataloader: Any, **settings: Any) -> None:
        super().__init__(runner, with_data_root(dataloader, runner.cfg), **settings)


@LOOPS.register_module()
class DataRootIterBasedTrainLoop(IterBasedTrainLoop):
    """mmengine's loop over iterations, on data sets under the config's ``data_root``."""

    def __init__(self, runner: Any, dataloader: Any, **settings: Any) -> None:
        super().__init__(runner, with_data_root(dataloader, runner.cfg), **settings)


@LOOPS.register_module()
class DataRootValLoop(ValLoop):
    """mmengine's validation, on data sets and annotations under the config's ``data_root``."""

    def __init__(self, runner: Any, dataloader: Any, evaluator: Any, **settings: Any) -> None:
        evaluator = with_annotation_paths(evaluator, runner.cfg)
        super().__init__(runner, with_data_root(dataloader, runner.cfg), evaluator, **settings)


@LOOPS.register_module()
class DataRootTestLoop(TestLoop):
    """mmengine's test, on data sets and annotations under the config's ``data_root``."""

    def __init__(self, runner: Any, dataloader: Any, evaluator: Any, **settings: Any) -> None:
        evaluator = with_annotation_paths(evaluator, runner.cfg)
        super().__init__(runner, with_data_root(dataloader, runner.cfg), evaluator, **settings)
