"""Running a trained model over samples: devices, arithmetic, logits, accuracies, pooled features."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import default_collate

from map_core.errors import UserError, unknown_name
from map_core.ranges import check, check_choices
from map_core.runs.summary import describe_run
from map_core.training.config import Precision
from map_core.training.loading import batches_in_order
from map_core.training.task import MapStyleDataset

Collate = Callable[[list[Any]], Any]
Gather = Callable[..., tuple[Float[Tensor, "n f"], Int[Tensor, " n"]]]  # collect, or a replacement for it
Device = Literal["auto", "cpu", "cuda"]
TOP = 5
ROWS = 8192  # rows of results that are processed at once


@dataclass
class EvaluationConfig:
    """How samples are run through a model.

    Args:
        batch_size: Samples at once, per process.
        workers: Loading processes.
        device: Where the model runs; auto takes a GPU if there is one.
        precision: Arithmetic of the forward pass.
        progress: Show a progress bar.
    """

    batch_size: int = 128
    workers: int = 2
    device: Device = "auto"
    precision: Precision = "fp32"
    progress: bool = True

    def validate(self) -> None:
        """Raise a :class:`UserError` for the first field that no evaluation can have."""
        check("evaluation", self, at_least_one=("batch_size",), not_negative=("workers",))
        check_choices("evaluation", self)


def choose_device(name: str) -> torch.device:
    """The device that ``auto``, ``cpu`` or ``cuda`` names.

    Raises:
        UserError: an unknown name, or a device that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in get_args(Device):
        raise unknown_name("device", name, get_args(Device))
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device 'cuda' asked for, but torch sees no GPU; use --evaluation.device cpu")
    return torch.device(name)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast to bf16 where ``precision`` is bf16, else to nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def input_of(sample: Any) -> Any:
    """The input of a sample or batch: its first part, or all of it where it is a tensor."""
    return sample if isinstance(sample, Tensor) else sample[0]


def labels_of(batch: Any) -> Int[Tensor, " b"]:
    """The labels of a batch: its second part if that is a whole number for each sample, else zeros."""
    if not isinstance(batch, Tensor) and len(batch) > 1:
        second = batch[1]
        if isinstance(second, Tensor) and second.ndim == 1 and not second.is_floating_point():
            return second
    return torch.zeros(len(input_of(batch)), dtype=torch.long)


class Stopwatch:
    """Wall time, speed and memory of a block, for summary.json."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> "Stopwatch":
        self.start = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        self.seconds = time.perf_counter() - self.start

    def report(self, samples: int) -> dict[str, Any]:
        """Entries of summary.json for a block that ran over so many samples."""
        speed = {"seconds": self.seconds, "samples_per_second": samples / self.seconds}
        return speed | describe_run(self.device)


def results_in_order(
    function: Callable[[Tensor], Tensor],
    samples: MapStyleDataset,
    config: EvaluationConfig,
    device: torch.device,
    *,
    collate: Collate = default_collate,
    shard: tuple[int, int] = (0, 1),
    indices: Sequence[int] | None = None,
    seed: int = 0,
    pass_number: int = 0,
    title: str | None = None,
) -> Iterator[tuple[Float[Tensor, "b f"], Int[Tensor, " b"]]]:
    """Yield, batch by batch, ``function`` of the inputs, and the labels; both on the CPU.

    Args:
        function: Called with batches of inputs, such as a classifier.
        samples: By index, as :func:`input_of` and :func:`labels_of` read them.
        config: Batch size, workers, precision, progress.
        device: Where ``function`` computes.
        collate: Makes a batch of samples.
        shard: (i, n): take samples i, i + n, i + 2n, ...
        indices: Samples to take instead of a shard.
        seed, pass_number: Keys of the samples' randomness, which is drawn anew in every pass.
        title: Title of the progress bar, if ``config`` enables it.
    """
    for batch in batches_in_order(
        samples,
        batch_size=config.batch_size,
        workers=config.workers,
        device=device,
        collate=collate,
        shard=shard,
        indices=indices,
        seed=seed,
        pass_number=pass_number,
        progress=title if config.progress else None,
    ):
        with torch.no_grad(), autocast(device, config.precision):
            values = function(input_of(batch)).float().cpu()
        yield values, labels_of(batch).cpu()


def collect(
    function: Callable[[Tensor], Tensor],
    samples: MapStyleDataset,
    config: EvaluationConfig,
    device: torch.device,
    **options: Any,
) -> tuple[Float[Tensor, "n f"], Int[Tensor, " n"]]:
    """Concatenate all results of :func:`results_in_order`, which takes the options."""
    results = results_in_order(function, samples, config, device, **options)
    values, labels = zip(*results, strict=True)
    return torch.cat(values), torch.cat(labels)


def pooled_features(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The features that a model's head reads, as a function of its inputs."""

    def pooled(inputs: Tensor) -> Tensor:
        return model.forward_head(model.forward_features(inputs), pre_logits=True)  # type: ignore[operator]

    return pooled


def extract_features(
    model: nn.Module,
    samples: MapStyleDataset,
    config: EvaluationConfig,
    *,
    collate: Collate = default_collate,
    title: str = "features",
    gather: Gather = collect,
) -> tuple[Float[np.ndarray, "n f"], Int[np.ndarray, " n"]]:
    """Pooled features (what the head reads) and labels of all samples, in order; ``gather`` collects them."""
    device = choose_device(config.device)
    model = model.to(device).eval()
    features, labels = gather(pooled_features(model), samples, config, device, collate=collate, title=title)
    return features.numpy(), labels.numpy()


def class_totals(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, "4 c"]:
    """Sums by class: samples, correct ones, correct among the top five, cross-entropy; totals of shards add up."""
    totals = torch.zeros(4, logits.shape[1], dtype=torch.float64)
    for chunk, targets in zip(logits.split(ROWS), labels.split(ROWS), strict=True):
        hits = chunk.topk(min(TOP, chunk.shape[1]), dim=1).indices == targets.unsqueeze(1)
        loss = F.cross_entropy(chunk.double(), targets, reduction="none")
        terms = (torch.ones_like(loss), hits[:, 0].double(), hits.any(dim=1).double(), loss)
        for row, values in enumerate(terms):
            totals[row].index_add_(0, targets, values)
    return totals


def classification_metrics(totals: Float[Tensor, "4 c"]) -> dict[str, float]:
    """Accuracies in percent and the mean loss, from :func:`class_totals`.

    The accuracies are overall, among the five most probable (of more than five classes), and the mean over the
    classes that have samples.
    """
    count, correct, correct_top5, loss = totals.double()
    present, samples = count > 0, count.sum()
    metrics = {"test_accuracy": float(100 * correct.sum() / samples)}
    if len(count) > TOP:
        metrics["test_accuracy_top5"] = float(100 * correct_top5.sum() / samples)
    metrics["test_accuracy_class_mean"] = float(100 * (correct[present] / count[present]).mean())
    metrics["test_loss"] = float(loss.sum() / samples)
    return metrics
