"""Contrastive learning: recognise two views of a sample among all other samples."""

import copy
import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from map_core.errors import UserError, unknown_name
from map_core.initialization import init_weights
from map_core.objective import LossOutput, Objective, require_backbone
from map_core.objectives.contrastive.keys import Queue, gather_keys, process_rank
from map_core.objectives.contrastive.projection import direction, normalized_mlp, plain_projector
from map_core.objectives.settings import Method, ObjectiveSettings
from map_core.randomness import Draw
from map_core.ranges import check, refuse_without_effect

Version = Literal["v2", "v3"]


class Contrastive(Objective):
    """Find the other view of a sample among the views of others.

    The keys come from a momentum encoder (``slow``), a slowly moving copy of the model.

    ``v2`` (MoCo v2, arXiv 2003.04297): the first view is the query, the keys are the second view and a queue of earlier
    ones. ``v3`` (MoCo v3, arXiv 2104.02057): each view is the query for the other among the batch of all processes,
    through a predictor that the momentum encoder lacks. Accumulated micro-batches are not compared with each other.

    >>> from map_core.testing import GridBackbone, toy_encoder
    >>> objective = Contrastive(GridBackbone(4, toy_encoder(16)), "v3", hidden_dim=8, out_dim=8)
    >>> views = torch.randn(3, 2, 4, 4, 4)      # three samples, two views each
    >>> objective(views, Draw.of_batch(3)).loss.shape
    torch.Size([])

    Args:
        backbone: The model that is pretrained and exported; its features are averaged over tokens.
        version: ``v2`` or ``v3``.
        hidden_dim, out_dim: Widths of the projector (and of v3's predictor).
        temperature: Temperature of the softmax over keys.
        momentum: Share of the momentum encoder that a step keeps; v3 lets it rise to 1 by half a cosine over the run.
        queue: Number of keys that v2 remembers.

    Raises:
        UserError: an unknown version, or a backbone that lacks something that the objective calls.
    """

    # inside forward a sharded model's parameters are copies, so that moving them would have no effect
    reason_not_to_shard = (
        "objective.method contrastive moves a copy of its encoder, which FSDP does not let it reach"
    )

    def __init__(
        self,
        backbone: nn.Module,
        version: Version = "v3",
        *,
        hidden_dim: int,
        out_dim: int,
        temperature: float = 0.2,
        momentum: float = 0.99,
        queue: int = 65_536,
    ) -> None:
        super().__init__()
        require_backbone(backbone)
        if version not in get_args(Version):
            raise unknown_name("version of contrastive learning", version, get_args(Version))
        self.backbone, self.version = backbone, version
        self.temperature, self.momentum = temperature, momentum
        width = int(self.backbone.embed_dim)
        self.queue = Queue(queue, out_dim) if version == "v2" else None
        self.predictor: nn.Module = nn.Identity()
        if version == "v2":
            self.projector = plain_projector(width, hidden_dim, out_dim)
        else:
            self.projector = normalized_mlp((width, hidden_dim, hidden_dim, out_dim))
            self.predictor = normalized_mlp((out_dim, hidden_dim, out_dim))
        self.projector.apply(init_weights)
        self.predictor.apply(init_weights)
        mask_token = getattr(backbone, "mask_token", None)
        if mask_token is not None:  # no token is hidden, so that it would get no gradient
            mask_token.requires_grad_(False)
        self.slow = nn.ModuleDict(
            {"backbone": copy.deepcopy(backbone), "projector": copy.deepcopy(self.projector)}
        ).requires_grad_(False)
        self.total_steps: int | None = None
        self.last_update_step: int | None = None  # of the momentum encoder

    def begin(self, total_steps: int) -> None:
        """Start the momentum encoder from the model, which may have been loaded since the copy was made."""
        self.total_steps = total_steps
        for slow, model in self._pairs():
            slow.load_state_dict(model.state_dict())

    def forward(self, inputs: Float[Tensor, "b 2 *sample"], draw: Draw) -> LossOutput:
        """Compare the two views of each sample.

        Raises:
            UserError: the inputs are not pairs of views, or the batch has one sample.
        """
        first, second = self._views(inputs)
        if self.training:
            self.update_momentum_encoder_once(draw)
        if self.version == "v2":
            return self._against_queue(self.query(first), self.key(second))
        outputs = [
            self._against_batch(self.query(query_view), self.key(key_view))
            for query_view, key_view in ((first, second), (second, first))
        ]
        accuracy = torch.stack([output.scalars["accuracy"] for output in outputs]).mean()
        return LossOutput(outputs[0].loss + outputs[1].loss, scalars={"accuracy": accuracy})

    def query(self, view: Any) -> Float[Tensor, "b d"]:
        """The queries of a view, with gradient."""
        return direction(self.predictor(self.projector(mean_features(self.backbone, view))))

    @torch.no_grad()
    def key(self, view: Any) -> Float[Tensor, "b d"]:
        """The keys of a view, without gradient."""
        return direction(self.slow["projector"](mean_features(self.slow["backbone"], view)))

    @torch.compiler.disable  # the step's number would be a constant of the graph, recompiled at every step
    def update_momentum_encoder_once(self, draw: Draw) -> None:
        """Update the momentum encoder once per step, however many micro-batches the step has."""
        if draw.step != self.last_update_step:
            self.last_update_step = draw.step
            self.update_momentum_encoder(draw.step)

    @torch.no_grad()
    def update_momentum_encoder(self, step: int) -> None:
        """Move the momentum encoder towards the model."""
        momentum = self.step_momentum(step)
        for slow, model in self._pairs():
            for average, value in zip(slow.parameters(), model.parameters(), strict=True):
                average.lerp_(value, 1 - momentum)

    def step_momentum(self, step: int) -> float:
        """The momentum of a step."""
        if self.version == "v2" or self.total_steps is None:
            return self.momentum
        return 1 - (1 - self.momentum) * 0.5 * (1 + math.cos(math.pi * step / self.total_steps))

    def _pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.slow["backbone"], self.backbone), (self.slow["projector"], self.projector)]

    def _views(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        if inputs.ndim < 3 or inputs.shape[1] != 2:
            raise UserError(
                f"a contrastive objective takes two views of each sample, (b, 2, ...); got {tuple(inputs.shape)}"
            )
        if len(inputs) < 2:
            raise UserError(
                "a contrastive objective compares the samples of a batch, but a process got one: raise "
                "training.batch_size, which is split over processes and accumulation steps"
            )
        first, second = inputs.unbind(1)
        return first, second

    def _against_queue(self, queries: Tensor, keys: Tensor) -> LossOutput:
        assert self.queue is not None
        # a copy, as the queue changes before the gradient is taken
        negatives = self.queue.keys.clone()
        logits = torch.cat(
            [(queries * keys).sum(-1, keepdim=True), cosine_similarities(queries, negatives)], dim=1
        )
        labels = torch.zeros(len(queries), dtype=torch.long, device=queries.device)
        gathered = gather_keys(keys)
        if self.training:
            self.queue.put(gathered)
        return contrastive_output(logits / self.temperature, labels)

    def _against_batch(self, queries: Tensor, keys: Tensor) -> LossOutput:
        logits = cosine_similarities(queries, gather_keys(keys)) / self.temperature
        labels = torch.arange(len(queries), device=queries.device) + process_rank() * len(queries)
        output = contrastive_output(logits, labels)
        return LossOutput(2 * self.temperature * output.loss, scalars=output.scalars)


def mean_features(backbone: nn.Module, inputs: Any) -> Float[Tensor, "b d"]:
    """The mean feature of all tokens."""
    encoder: Any = backbone
    return encoder.encode(encoder.tokenize(inputs)).embedding.mean(dim=1)


def cosine_similarities(queries: Float[Tensor, "b d"], keys: Float[Tensor, "k d"]) -> Float[Tensor, "b k"]:
    """Cosines of unit vectors, in float32 even under autocast: those of views are near 1, where bf16 is coarse."""
    with torch.autocast(queries.device.type, enabled=False):
        return queries.float() @ keys.float().mT


def contrastive_output(logits: Float[Tensor, "b k"], labels: Tensor) -> LossOutput:
    """The cross entropy and accuracy of picking the right key for each query."""
    accuracy = (logits.detach().argmax(dim=1) == labels).float().mean()
    return LossOutput(F.cross_entropy(logits, labels), scalars={"accuracy": accuracy})


@dataclass
class ContrastiveConfig(ObjectiveSettings):
    """The version of contrastive learning, and its sizes.

    Args:
        version: MoCo's v2 (a queue of keys) or v3 (keys of the batch, and a predictor).
        temperature: Temperature of the softmax over keys.
        momentum: Share of the key encoder that a step keeps; v2's is .999 throughout, v3's rises from .99 to 1.
        queue: Number of keys that v2 remembers.
        hidden_dim: Width of the projection's hidden layers; the encoder's for v2 and 4096 for v3 when not set.
        out_dim: Width of the vectors that are compared; 128 for v2 and 256 for v3 when not set.
    """

    method: Method = field(default="contrastive", kw_only=True)
    version: Version = "v3"
    temperature: float = 0.2
    momentum: float | None = None
    queue: int = 65_536
    hidden_dim: int | None = None
    out_dim: int | None = None

    def validate(self) -> None:
        super().validate()
        check("objective", self, positive=("temperature",), at_least_one=("queue", "hidden_dim", "out_dim"))
        if self.momentum is not None and not 0 <= self.momentum <= 1:
            raise UserError(f"objective.momentum must lie in [0, 1]; got {self.momentum}")
        if self.version != "v2":
            refuse_without_effect("objective", self, "queue", because=f"objective.version {self.version}")

    def build(self, backbone: Any) -> Contrastive:
        defaults: dict[str, Any] = (
            {"hidden_dim": backbone.embed_dim, "out_dim": 128, "momentum": 0.999}
            if self.version == "v2"
            else {"hidden_dim": 4096, "out_dim": 256, "momentum": 0.99}
        )
        settings = {name: getattr(self, name) for name in defaults}
        overrides = {name: value for name, value in settings.items() if value is not None}
        return Contrastive(
            backbone, self.version, temperature=self.temperature, queue=self.queue, **(defaults | overrides)
        )

    def training_samples(self, data: Any, *, batch_size: int, micro_batch: int) -> Any:
        samples = len(data.train)
        if micro_batch < 2:
            raise UserError(
                f"a contrastive objective compares the samples of a micro-batch, and here it has {micro_batch}: raise "
                f"training.batch_size ({batch_size}), which is split over processes and accumulation steps"
            )
        if self.version == "v2" and self.queue > samples:
            raise UserError(
                f"objective.queue ({self.queue}) is larger than the epoch of {samples} samples, so that a sample would "
                "be its own negative: lower it"
            )
        if self.version == "v2" and self.queue < batch_size:
            raise UserError(
                f"objective.queue ({self.queue}) is smaller than training.batch_size ({batch_size}): raise it"
            )
        return self.make_views(data)

    def make_views(self, data: Any) -> Any:
        """Training samples, each with two views as its input."""
        raise NotImplementedError
