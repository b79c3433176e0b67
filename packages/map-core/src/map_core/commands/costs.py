"""What ``info --flops`` prints: parameters, multiply-adds and tokens of a model."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from map_core.ops.multiply_adds import count_multiply_adds
from map_core.tasks.domain import Domain

CONVENTION = (
    "a multiply-add is one multiplication with its addition, what papers call a FLOP; of a scan it is half of its",
    "multiplications, additions and exponentials; norms, activations, gates and the choice of patches are not counted",
)


def describe_costs(domain: Domain, config: Any) -> str:
    """Describe a model's classifier and the encoder that is pretrained, on one sample.

    Args:
        domain: Of the model.
        config: Its section.

    Raises:
        UserError: an unknown model, or settings that do not fit together.
    """
    with torch.device("meta"):
        classifier = domain.models.create_classifier(config, domain.outputs)
        encoder = domain.models.create_backbone(config)
    sample = domain.example(config)
    lines = [
        f"{config.name}, one {domain.sample} of {' x '.join(map(str, sample.shape[1:]))}",
        f"{'':34}{'parameters':>13}{'multiply-adds':>16}{'tokens':>9}",
    ]
    counts: Counter[str] = Counter()
    for form, model in ((f"classifier of {domain.outputs}", classifier), ("encoder, all patches", encoder)):
        tokens, counts = costs_of(model, sample, classify=model is classifier)
        size = sum(parameter.numel() for parameter in model.parameters())
        lines.append(f"  {form:32}{size:>13,}{giga(counts.total()):>16}{tokens:>9}")
        lines += [f"    {kind:30}{'':13}{giga(count):>16}" for kind, count in counts.most_common()]
    return "\n".join([*lines, *CONVENTION])


def costs_of(model: nn.Module, sample: Tensor, *, classify: bool) -> tuple[int, Counter[str]]:
    """Tokens of a sample, registers and class tokens included, and its multiply-adds by kind.

    Args:
        model: With parameters of any values, on the meta device as well.
        sample: A batch of one.
        classify: Run the classifier instead of the encoder.
    """
    model = model.to_empty(device="cpu").eval()
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.detach().zero_()
    tokens = model.tokenize(sample)
    length = tokens.num_maskable + getattr(model, "num_prefix_tokens", tokens.num_global)
    return length, count_multiply_adds(
        lambda: model(sample) if classify else model.encode(model.tokenize(sample))
    )


def giga(count: int) -> str:
    """A count in units of 10^9."""
    return f"{count / 1e9:.3f} G"
