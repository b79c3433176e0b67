"""How long, how fast and on what a model is trained: the ``training`` section of every recipe."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from map_core.errors import UserError
from map_core.ranges import check, check_choices, refuse_without_effect, require

REFERENCE_BATCH = 256  # base_lr is the learning rate at this batch size
Precision = Literal["fp32", "bf16"]
Device = Literal["auto", "cpu", "cuda", "mps"]
AT_LEAST_ONE = (
    "sample_budget",
    "epochs",
    "batch_size",
    "accumulation_steps",
    "repeated_augmentation",
    "checkpoint_steps",
    "checkpoint_epochs",
    "keep_checkpoints",
    "evaluate_epochs",
    "log_steps",
    "max_steps",
    "recompute_every",
)
POSITIVE = ("base_lr", "lr", "eps", "clip_grad", "layer_decay")
NOT_NEGATIVE = ("warmup_epochs", "warmup_lr", "min_lr", "weight_decay", "workers")
BUDGET_PARTS = 20
Compile = Literal["none", "model", "blocks"]
CompileMode = Literal["default", "reduce-overhead", "max-autotune"]


@dataclass
class TrainingConfig:
    """Settings of the training loop.

    Args:
        sample_budget: Train on about this many samples in all, whatever the size of the data: it sets the epochs, the
            batch is at most all samples that micro-batches share evenly, the warmup is a twentieth of the epochs, and
            checkpoints and evaluations come at most twenty times per run, or as rarely as their settings say.
        epochs: Passes over the training data.
        batch_size: Samples per optimizer step, over all processes and accumulation steps together.
        accumulation_steps: Micro-batches that each process sums into one optimizer step.
        base_lr: Learning rate at batch size 256; the run uses base_lr * batch_size / 256.
        lr: Learning rate, not scaled by the batch size; replaces base_lr.
        warmup_epochs: Epochs over which the learning rate rises from warmup_lr; fractions are allowed.
        warmup_lr: Learning rate of the first step (absolute; never above lr).
        min_lr: Learning rate at the end of the cosine (absolute; never above lr).
        optimizer: Any name that timm's optimizer factory knows.
        betas: Decay rates of the optimizer's first and second moments, where it has them.
        eps: Term added to the optimizer's denominator, where it has one; it replaces timm's default for the optimizer,
            such as 1e-6 for lamb.
        weight_decay: Weight decay; biases, norms and what the model excludes are not decayed.
        layer_decay: Factor by which the learning rate falls from each layer to the one before it.
        clip_grad: Largest norm of the whole gradient; null does not clip it. The optimizer lamb also clips it at 1.
        precision: Arithmetic of the forward pass; weights and optimizer are float32 in both.
        activation_checkpointing: Recompute the encoder's activations in the backward pass instead of keeping
            them: less memory, about a third more time. A linear probe, whose encoder is frozen, keeps none anyway.
        recompute_every: With activation_checkpointing: recompute only every n-th block, 1 being all of them; the
            others keep their activations.
        compile: Compile the whole model, or each of its blocks, with torch.compile; none leaves it uncompiled. The
            first step then takes minutes; sizes that vary from step to step (objective.mask_ratio_std) compile again.
        compile_mode: Mode of torch.compile; reduce-overhead records CUDA graphs.
        ema_decay: Decay of an exponential moving average of the weights; null keeps none.
        repeated_augmentation: How often each sample is repeated, differently augmented, within an epoch's
            order; the epoch keeps its number of samples.
        seed: Seed of everything random.
        workers: Data loading processes per training process; 0 loads in the training process.
        checkpoint_steps: Steps between checkpoints, in addition to those by epochs; null saves by epochs only.
        checkpoint_epochs: Epochs between checkpoints (one is always saved at the end).
        keep_checkpoints: Number of checkpoints to keep, the newest ones.
        evaluate_epochs: Epochs between evaluations (one always comes at the end).
        log_steps: Steps between lines of metrics.
        device: Where to train; auto takes a GPU if there is one.
        max_steps: Stop after this many steps, to try things out; the schedule stays that of the whole run.
        progress: Show progress on stderr.
        tensorboard: Write TensorBoard events.
        trackers: Trackers of Accelerate that also receive the metrics, such as wandb, mlflow or trackio.
    """

    sample_budget: int | None = None
    epochs: int = 100
    batch_size: int = 256
    accumulation_steps: int = 1
    base_lr: float = 1.5e-4
    lr: float | None = None
    warmup_epochs: float = 5.0
    warmup_lr: float = 1e-6
    min_lr: float = 0.0
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.05
    layer_decay: float | None = None
    clip_grad: float | None = 3.0
    precision: Precision = "fp32"
    activation_checkpointing: bool = False
    recompute_every: int = 1
    compile: Compile = "none"
    compile_mode: CompileMode = "default"
    ema_decay: float | None = None
    repeated_augmentation: int = 1
    seed: int = 0
    workers: int = 2
    checkpoint_steps: int | None = None
    checkpoint_epochs: int = 1
    keep_checkpoints: int = 2
    evaluate_epochs: int = 1
    log_steps: int = 10
    device: Device = "auto"
    max_steps: int | None = None
    progress: bool = True
    tensorboard: bool = True
    trackers: tuple[str, ...] = ()

    @property
    def peak_lr(self) -> float:
        """The learning rate at the end of the warmup."""
        return self.base_lr * self.batch_size / REFERENCE_BATCH if self.lr is None else self.lr

    @property
    def rate_setting(self) -> str:
        """The setting that the learning rate comes from."""
        return "base_lr" if self.lr is None else "lr"

    def resolved_for(self, samples: int, *, processes: int = 1, pairs: bool = False) -> "TrainingConfig":
        """Return the settings for ``samples`` training samples: a ``sample_budget`` becomes epochs and what they set.

        Args:
            samples: Number of training samples.
            processes: Processes of the run; a batch of all samples leaves out those that they cannot share evenly.
            pairs: Whether samples of a micro-batch are mixed in pairs, so that it must be even.
        """
        if self.sample_budget is None:
            return self
        parts = processes * self.accumulation_steps * (2 if pairs else 1)
        largest_batch = samples // parts * parts
        batch_size = min(self.batch_size, largest_batch) or self.batch_size
        seen = samples // batch_size * batch_size or samples  # an epoch leaves out what fills no batch
        epochs = max(1, round(self.sample_budget / seen))
        interval = math.ceil(epochs / BUDGET_PARTS)
        return replace(
            self,
            sample_budget=None,
            epochs=epochs,
            batch_size=batch_size,
            warmup_epochs=epochs / BUDGET_PARTS,
            checkpoint_epochs=max(self.checkpoint_epochs, interval),
            evaluate_epochs=max(self.evaluate_epochs, interval),
        )

    def micro_batch(self, processes: int, samples: int | None = None, *, pairs: bool = False) -> int:
        """Return how many samples one process holds in one micro-step.

        Args:
            processes: Processes of the run.
            samples: Number of training samples, which the suggested batch size will not exceed.
            pairs: Whether samples of a micro-batch are mixed in pairs, so that it must be even.

        Raises:
            UserError: the global batch does not split evenly, or not into whole pairs.
        """
        parts = processes * self.accumulation_steps
        unit = parts * 2 if pairs else parts
        if self.batch_size % unit:
            size = -(-self.batch_size // unit)
            if samples is not None and size * unit > samples:
                size = samples // unit
            cure = f"set --training.batch_size {size * unit}"
            if size == 0:
                cure = f"the {samples} training samples fill none: use fewer processes or accumulation_steps"
            rule, product = "processes times accumulation_steps", f"{processes} * {self.accumulation_steps}"
            if pairs:
                rule, product = f"{rule} times 2, as samples are mixed in pairs", f"{product} * 2"
            raise UserError(
                f"training.batch_size ({self.batch_size}) must be a multiple of {rule} ({product} = {unit}); {cure}"
            )
        return self.batch_size // parts

    def validate(self) -> None:
        """Raise a :class:`UserError` for the first field whose value no run can have."""
        check(
            "training",
            self,
            at_least_one=AT_LEAST_ONE,
            positive=POSITIVE,
            not_negative=NOT_NEGATIVE,
            seeds=("seed",),
            inside_zero_and_one=("ema_decay",),
            shares_below_one=("betas",),
        )
        if self.sample_budget is None:  # which sets both
            rule = f"must be below epochs ({self.epochs})"
            require("training", self, "warmup_epochs", lambda value: value < self.epochs, rule)
        require("training", self, "layer_decay", lambda value: value <= 1, "must be at most 1")
        check_choices("training", self)
        if self.recompute_every != 1 and not self.activation_checkpointing:
            raise UserError(
                f"training.recompute_every {self.recompute_every} chooses blocks of activation_checkpointing, which is "
                "off; set --training.activation_checkpointing true"
            )
        if self.compile == "none":
            refuse_without_effect("training", self, "compile_mode", because="training.compile none")
        if self.compile != "none" and self.compile_mode == "reduce-overhead" and self.accumulation_steps > 1:
            raise UserError(
                f"training.compile_mode reduce-overhead reuses the memory of gradients: they cannot be summed over "
                f"accumulation_steps ({self.accumulation_steps}); set --training.accumulation_steps 1, or "
                "--training.compile_mode default"
            )
