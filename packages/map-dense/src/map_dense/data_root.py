"""Filling the config's top-level ``data_root`` into every data set, so that one option moves them all.

OpenMMLab's configs copy ``data_root`` into every data set and every annotation path while the file is read, before
``--cfg-options data_root=PATH`` is merged, so that option has no effect. The configs of this package leave it out of
their data sets instead, and use the loops of :mod:`map_dense.loops`, which fill it in.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.fileio import exists, isdir, join_path
from mmengine.utils import is_abs

from map_core.errors import UserError
from map_core.paths import expand_user


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
        raise UserError(f"data_root ({root}) is not a directory; set it by --cfg-options data_root=PATH")
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


def innermost_datasets(dataset: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The settings of the data sets within wrappers such as ``RepeatDataset`` and ``ConcatDataset``."""
    inner = dataset.get("datasets") or ([dataset["dataset"]] if "dataset" in dataset else [])
    for part in inner:
        yield from innermost_datasets(part)
    if not inner:
        yield dataset


def with_annotation_paths(evaluator: Any, dataloader: Any, config: Any) -> Any:
    """Copy an evaluator's settings (or a list of them) with relative ``ann_file`` paths under the data's ``data_root``.

    A built evaluator is returned as is.

    Args:
        evaluator: The settings.
        dataloader: Settings of the data loader whose data are evaluated, or a built one, whose root is the config's.
        config: The whole config.

    Raises:
        UserError: ``data_root`` is needed but not set, or is not a directory; the data lie under several.
    """
    if isinstance(evaluator, list | tuple):
        return [with_annotation_paths(part, dataloader, config) for part in evaluator]
    path = evaluator.get("ann_file") if isinstance(evaluator, Mapping) else None
    if not path or is_abs(path):
        return evaluator
    datasets = list(innermost_datasets(dataloader["dataset"])) if isinstance(dataloader, Mapping) else [{}]
    roots = sorted({dataset.get("data_root") or config_data_root(config) for dataset in datasets})
    if len(roots) > 1:
        raise UserError(
            f"ann_file ({path}) of the evaluator is relative, but its data lie in {' and '.join(roots)}: make it "
            "absolute"
        )
    return {**evaluator, "ann_file": join_path(roots[0], path)}


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
            evaluator, loader = config[f"{split}_evaluator"], config.get(f"{split}_dataloader")
            config[f"{split}_evaluator"] = with_annotation_paths(evaluator, loader, config)
    return config
