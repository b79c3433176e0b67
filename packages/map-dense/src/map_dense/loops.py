"""mmengine's loops on data sets under ``data_root`` (:mod:`map_dense.data_root`), with checks before they start."""

import itertools
import logging
from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import DATASETS, LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, TestLoop, ValLoop

from map_core.errors import UserError
from map_dense.categories import check_categories
from map_dense.data_root import innermost_datasets, with_annotation_paths, with_data_root
from map_dense.openmmlab import MambaVision, PretrainedBackbone
from map_dense.stopping import keep_workers_until_parent_ends
from map_dense.weights import other_normalisation


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


def check_patch_sizes(model: Any) -> None:
    """Refuse a pyramid for patches of another size than the backbone's, whose maps would have other strides.

    Raises:
        UserError: it has both sizes.
    """
    model = model.module if is_model_wrapper(model) else model
    model = model.module if isinstance(model, BaseTTAModel) else model
    of_backbone, of_neck = (
        getattr(getattr(model, part, None), "patch_size", None) for part in ("backbone", "neck")
    )
    if of_backbone != of_neck and None not in (of_backbone, of_neck):
        raise UserError(
            f"model.backbone.patch_size ({of_backbone}) and model.neck.patch_size ({of_neck}) must be equal, or boxes "
            "and labels are shifted; set both"
        )


def warn_of_other_normalisation(model: Any) -> None:
    """Warn of images that are normalised otherwise than those that the weights of ``init_cfg`` were trained on."""
    model = model.module if is_model_wrapper(model) else model
    backbone, preprocessor = (getattr(model, part, None) for part in ("backbone", "data_preprocessor"))
    if not isinstance(backbone, PretrainedBackbone | MambaVision) or not backbone.init_cfg:
        return
    buffers = (getattr(preprocessor, name, None) for name in ("mean", "std"))
    mean, std = (None if buffer is None else buffer.flatten().tolist() for buffer in buffers)
    if (difference := other_normalisation(backbone.init_cfg["checkpoint"], mean, std)) is not None:
        print_log(difference, logger="current", level=logging.WARNING)


def trained_classes(config: Any) -> tuple[str, ...] | None:
    """The classes of a config's training data in the order in which they are learned; None if it has none."""
    dataloader = config.get("train_dataloader")
    if not isinstance(dataloader, Mapping):
        return None
    dataset = next(innermost_datasets(dataloader["dataset"]))
    with DATASETS.switch_scope_and_registry(None) as registry:
        kind = registry.get(dataset["type"]) if isinstance(dataset["type"], str) else dataset["type"]
    metainfo = {**getattr(kind, "METAINFO", {}), **(dataset.get("metainfo") or {})}
    classes = metainfo.get("classes")
    return tuple(classes) if isinstance(classes, list | tuple) else None


def check_classes(dataset: Any, config: Any, section: str) -> None:
    """Refuse data to evaluate whose classes are not those that are trained, in the same order.

    Args:
        dataset: The data set.
        config: The whole config.
        section: The data loader's name in the message.

    Raises:
        UserError: naming the first class that differs.
    """
    trained, evaluated = trained_classes(config), getattr(dataset, "metainfo", {}).get("classes")
    if trained is None or evaluated is None or trained == tuple(evaluated):
        return
    pairs = itertools.zip_longest(evaluated, trained)
    number, (one, other) = next((i, pair) for i, pair in enumerate(pairs, 1) if pair[0] != pair[1])
    raise UserError(
        f"{section} has other classes than train_dataloader, or another order: number {number} is {one!r} and not "
        f"{other!r}, but a model names what it finds by the order in training; give both the same metainfo.classes"
    )


class TrainingUnderDataRoot:
    """What the training loops add to mmengine's.

    Data sets under ``data_root``, a validation that was cut off, and loading processes that survive until the
    checkpoint at SIGTERM is saved.
    """

    def __init__(self: Any, runner: Any, dataloader: Any, **settings: Any) -> None:
        check_patch_sizes(runner.model)
        warn_of_other_normalisation(runner.model)
        super().__init__(runner, with_data_root(dataloader, runner.cfg), **settings)  # type: ignore[call-arg]
        keep_workers_until_parent_ends(self.dataloader)  # they start with the first iteration

    def run(self: Any) -> Any:
        """Train and validate; return the model.

        Resumed after the last step, mmengine's loop does nothing. This one validates, as what stopped the run may have
        cut its last validation off.
        """
        start = self.iter
        model = super().run()  # type: ignore[misc]
        if self.iter == start and self.runner.val_loop is not None:
            self.runner.val_loop.run()
        return model


class EvaluationUnderDataRoot:
    """What the evaluating loops add to mmengine's: data and annotations under ``data_root``, and checks of both.

    ``section`` is the data loader's name in messages.
    """

    section: str

    def __init__(self: Any, runner: Any, dataloader: Any, evaluator: Any, **settings: Any) -> None:
        check_augmentation(runner.model)
        check_patch_sizes(runner.model)
        dataloader = with_data_root(dataloader, runner.cfg)
        evaluator = with_annotation_paths(evaluator, dataloader, runner.cfg)
        super().__init__(runner, dataloader, evaluator, **settings)  # type: ignore[call-arg]
        keep_workers_until_parent_ends(self.dataloader)
        check_classes(self.dataloader.dataset, runner.cfg, self.section)
        check_evaluator(self.evaluator, self.dataloader.dataset)


@LOOPS.register_module()
class DataRootEpochBasedTrainLoop(TrainingUnderDataRoot, EpochBasedTrainLoop):
    """mmengine's epoch-based training loop, on data sets under the config's ``data_root``."""


@LOOPS.register_module()
class DataRootIterBasedTrainLoop(TrainingUnderDataRoot, IterBasedTrainLoop):
    """mmengine's iteration-based training loop, on data sets under the config's ``data_root``."""


@LOOPS.register_module()
class DataRootValLoop(EvaluationUnderDataRoot, ValLoop):
    """mmengine's validation loop, on data sets and annotations under the config's ``data_root``."""

    section = "val_dataloader"


@LOOPS.register_module()
class DataRootTestLoop(EvaluationUnderDataRoot, TestLoop):
    """mmengine's test loop, on data sets and annotations under the config's ``data_root``."""

    section = "test_dataloader"
