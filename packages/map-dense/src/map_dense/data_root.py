"""Loops that look for every data set under the config's top-level ``data_root``, so that one option moves them all.

OpenMMLab's configs copy ``data_root`` into every data set and every annotation path while the file is read, before
``--cfg-options data_root=PATH`` is merged, so that option has no effect. The configs of this package leave it out of
their data sets instead, and use these loops, which fill it in.
"""

from collections.abc import Mapping
from typing import Any

from mmengine.fileio import exists, isdir, join_path
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, TestLoop, ValLoop
from mmengine.utils import is_abs

from map_core import UserError
from map_core.paths import expand_user
from map_dense.categories import check_categories


def config_data_root(config: Any) -> str:
    """The config's ``data_root``, absolute, so that paths under it hold in any folder and are not joined again.

    Raises:
        UserError: it is not set, or is not a directory.
    """
    root = config.get("data_root")
    if not root:
        raise UserError("data_root is not set; add --cfg-options data_root=PATH")
    root = expand_user(root)
    if not isdir(root):
        raise UserError(f"data_root ({root}) is no directory; set it by --cfg-options data_root=PATH")
    return str(root.absolute())


def with_data_root(dataloader: Any, config: Any, *, complete: bool = True) -> Any:
    """Copy a data loader's settings with ``data_root`` filled into every data set without one.

    A built data loader is returned as is.

    Raises:
        UserError: it is needed but not set, or is not a directory, or (with ``complete``) lacks a part of the data set.
    """
    if not isinstance(dataloader, Mapping):
        return dataloader
    return {**dataloader, "dataset": _with_data_root(dataloader["dataset"], config, complete)}


def _with_data_root(dataset: Mapping[str, Any], config: Any, complete: bool) -> Mapping[str, Any]:
    if "dataset" in dataset:  # a wrapper: RepeatDataset, ClassBalancedDataset, ...
        return {**dataset, "dataset": _with_data_root(dataset["dataset"], config, complete)}
    if "datasets" in dataset:  # ConcatDataset
        parts = [_with_data_root(part, config, complete) for part in dataset["datasets"]]
        return {**dataset, "datasets": parts}
    if dataset.get("data_root"):
        return dataset
    root = config_data_root(config)
    if complete:
        _check_parts(dataset, root)
    return {**dataset, "data_root": root}


def _check_parts(dataset: Mapping[str, Any], root: str) -> None:
    parts = {**(dataset.get("data_prefix") or {}), "ann_file": dataset.get("ann_file")}
    for name, part in parts.items():
        if part and not is_abs(part) and not exists(join_path(root, part)):
            raise UserError(
                f"data_root ({root}) has no {part}, which is the data set's {name}: see its layout in "
                "docs/segmentation_and_detection.md, or set another directory by --cfg-options data_root=PATH"
            )


def with_annotation_paths(evaluator: Any, config: Any) -> Any:
    """Copy an evaluator's settings (or a list of them) with relative ``ann_file`` paths under ``data_root``.

    A built evaluator is returned as is.

    Raises:
        UserError: it is needed but not set, or is not a directory.
    """
    if isinstance(evaluator, list | tuple):
        return [with_annotation_paths(part, config) for part in evaluator]
    path = evaluator.get("ann_file") if isinstance(evaluator, Mapping) else None
    if not path or is_abs(path):
        return evaluator
    return {**evaluator, "ann_file": join_path(config_data_root(config), path)}


def with_data_root_everywhere(config: Any) -> Any:
    """Fill ``data_root`` into every data loader and evaluator of a config, for tools that start no loop; in place.

    Raises:
        UserError: it is not set, or is not a directory.
    """
    for split in ("train", "val", "test"):
        if config.get(f"{split}_dataloader"):
            loader = with_data_root(config[f"{split}_dataloader"], config, complete=False)
            config[f"{split}_dataloader"] = loader
        if config.get(f"{split}_evaluator"):
            config[f"{split}_evaluator"] = with_annotation_paths(config[f"{split}_evaluator"], config)
    return config


def check_augmentation(model: Any) -> None:
    """Refuse mmdet's test-time augmentation of a detector with masks, which mmdet cannot merge.

    Raises:
        UserError: ``model`` is such a wrapper.
    """
    model = model.module if is_model_wrapper(model) else model
    if isinstance(model, BaseTTAModel) and getattr(model.module, "with_mask", False):
        raise UserError(
            "--tta: mmdet merges augmented boxes but no masks; score boxes alone by --cfg-options "
            "model.roi_head.mask_head=None test_evaluator.metric=bbox, or leave --tta out"
        )


def check_evaluator(evaluator: Any, dataset: Any) -> None:
    """Refuse an evaluator whose COCO file has other categories than the data set's classes.

    Raises:
        UserError: see :func:`map_dense.categories.check_categories`.
    """
    for metric in evaluator.metrics:
        index = getattr(metric, "_coco_api", None)
        if index is not None:
            names = [category["name"] for category in index.dataset["categories"]]
            check_categories(names, dataset.metainfo["classes"], "ann_file of the evaluator")


@LOOPS.register_module()
class DataRootEpochBasedTrainLoop(EpochBasedTrainLoop):
    """mmengine's epoch-based training loop, on data sets under the config's ``data_root``."""

    def __init__(self, runner: Any, dataloader: Any, **settings: Any) -> None:
        super().__init__(runner, with_data_root(dataloader, runner.cfg), **settings)


@LOOPS.register_module()
class DataRootIterBasedTrainLoop(IterBasedTrainLoop):
    """mmengine's iteration-based training loop, on data sets under the config's ``data_root``."""

    def __init__(self, runner: Any, dataloader: Any, **settings: Any) -> None:
        super().__init__(runner, with_data_root(dataloader, runner.cfg), **settings)


@LOOPS.register_module()
class DataRootValLoop(ValLoop):
    """mmengine's validation loop, on data sets and annotations under the config's ``data_root``."""

    def __init__(self, runner: Any, dataloader: Any, evaluator: Any, **settings: Any) -> None:
        evaluator = with_annotation_paths(evaluator, runner.cfg)
        super().__init__(runner, with_data_root(dataloader, runner.cfg), evaluator, **settings)
        check_evaluator(self.evaluator, self.dataloader.dataset)


@LOOPS.register_module()
class DataRootTestLoop(TestLoop):
    """mmengine's test loop, on data sets and annotations under the config's ``data_root``."""

    def __init__(self, runner: Any, dataloader: Any, evaluator: Any, **settings: Any) -> None:
        check_augmentation(runner.model)
        evaluator = with_annotation_paths(evaluator, runner.cfg)
        super().__init__(runner, with_data_root(dataloader, runner.cfg), evaluator, **settings)
        check_evaluator(self.evaluator, self.dataloader.dataset)
