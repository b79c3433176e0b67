"""What ``info --flops`` prints: parameters, multiply-adds and tokens of a model."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from map_core.ops.multiply_adds import count_multiply_adds
from map_core.tasks.domain import Domain

CONVENTION = (
    "a multiply-add is one multiplication with its addition, what papers call a FLOP; of a scan it is half of its",
    "multiplications, additions and exponentials; norms, activations, gates and the choice of patches are not counted",
)


@dataclass(frozen=True)
class Costs:
    """What a model costs on one sample.

    Attributes:
        parameters: Number of parameters of the whole model.
        tokens: Number of tokens, registers and class tokens included.
        multiply_adds: By kind of operation.
    """

    parameters: int
    tokens: int
    multiply_adds: Counter[str]


def describe_costs(domain: Domain, config: Any) -> str:
    """Describe a model's classifier and the encoder that is pretrained, on one sample.

    Args:
        domain: The domain of the model.
        config: Its section.

    Raises:
        UserError: an unknown model, or settings that do not fit together.
    """
    models, sample = domain.models, domain.example(config)
    variants = {
        f"classifier of {domain.outputs}": costs_of(
            partial(models.create_classifier, config, domain.outputs), sample, classify=True
        ),
        "encoder, all patches": costs_of(partial(models.create_backbone, config), sample, classify=False),
    }
    lines = [
        f"{config.name}, one {domain.sample} of {' x '.join(map(str, sample.shape[1:]))}",
        f"{'':34}{'parameters':>13}{'multiply-adds':>16}{'tokens':>9}",
    ]
    for variant, costs in variants.items():
        total = giga(costs.multiply_adds.total())
        lines.append(f"  {variant:32}{costs.parameters:>13,}{total:>16}{costs.tokens:>9}")
        lines += [f"    {kind:43}{giga(count):>16}" for kind, count in costs.multiply_adds.most_common()]
    return "\n".join([*lines, *CONVENTION])


def costs_of(create: Callable[[], Any], sample: Tensor, *, classify: bool) -> Costs:
    """Count what a model costs; its parameters are zeros, since random ones would take time to draw.

    Args:
        create: Makes a classifier or an encoder that tokenizes.
        sample: A batch of one.
        classify: Run the classifier instead of the encoder.
    """
    with torch.device("meta"):
        model = create()
    model.to_empty(device="cpu").eval()
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.detach().zero_()
    tokens = model.tokenize(sample)
    length = tokens.num_maskable + getattr(model, "num_prefix_tokens", tokens.num_global)
    counts = count_multiply_adds(lambda: model(sample) if classify else model.encode(model.tokenize(sample)))
    return Costs(sum(parameter.numel() for parameter in model.parameters()), length, counts)


def giga(count: int) -> str:
    """A count in units of 10^9."""
    return f"{count / 1e9:.3f} G"
