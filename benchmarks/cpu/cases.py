"""The cases measured on a CPU: a case is one model or block at one size, precision and kind of pass."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

WIDTH = 192  # of the blocks
TOKENS_AT_ONCE = 1568  # of the blocks, for short sequences: 8 images of 196
BLOCK_TOKENS = (49, 196, 784, 4096, 16384)
MODEL_TOKENS = (196, 784, 4096)
BF16_TOKENS = (196, 4096)  # of the blocks: enough to see what bf16 gains or costs
COST_TOKENS = (49, 196, 784, 1600)
COST_BATCHES = (1, 2, 4, 8, 16)
COST_DEPTHS = (4, 8, 16, 32)
BLOCKS = (
    "Mamba, both ways (ours)",
    "Mamba, one way (ours)",
    "Transformer (ours)",
    "Transformer (timm)",
    "Mamba, one way (mambapy)",
    "Mamba, one way (transformers)",
)
MODELS = ("hybrid", "Mamba", "ViT (timm)")
CLASSIFIERS = {
    "hybridnet_tiny_patch16_224": 196,
    "ViT as large (timm), 224 px": 196,
    "hybridnet_nano_patch4_32": 64,
    "ViT as large (timm), 32 px": 64,
}
COMMANDS = ("predict", "features")


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        part: ``blocks``, ``models``, ``inference``, ``commands`` or ``cost``.
        what: The contender; for commands, the model.
        tokens: Length of a sequence.
        batch: Sequences per pass; for commands, images in total.
        precision: ``fp32``, or ``bf16``: autocast around float32 weights.
        kind: ``forward`` without gradients, ``both`` (forward and backward), or the command.
        depth: Blocks of the model; 0 for the named model's.
    """

    part: str
    what: str
    tokens: int
    batch: int
    precision: str = "fp32"
    kind: str = "forward"
    depth: int = 0


def block_cases(precision: str, lengths: Iterable[int]) -> Iterator[Case]:
    """Blocks of one width, from short sequences to long ones, so that those that would be too slow can be skipped."""
    for tokens in lengths:
        for kind in ("forward", "both"):
            for what in BLOCKS:
                yield Case("blocks", what, tokens, max(1, TOKENS_AT_ONCE // tokens), precision, kind)


def model_cases() -> Iterator[Case]:
    """Encoders with equal numbers of parameters, in float32."""
    for tokens in MODEL_TOKENS:
        for kind in ("forward", "both"):
            for what in MODELS:
                yield Case("models", what, tokens, 8 if tokens == 196 else 1, kind=kind)


def inference_cases() -> Iterator[Case]:
    """Classifiers at one image and at 32."""
    for tokens in dict.fromkeys(CLASSIFIERS.values()):
        for batch in (1, 32):
            for what in classifiers_of_length(tokens):
                yield Case("inference", what, tokens, batch)


def command_cases() -> Iterator[Case]:
    """Whole commands over images in a folder."""
    for tokens in dict.fromkeys(CLASSIFIERS.values()):
        for command in COMMANDS:
            for what in classifiers_of_length(tokens):
                yield Case("commands", what, tokens, 16 if tokens == 196 else 128, kind=command)


def classifiers_of_length(tokens: int) -> list[str]:
    """The classifiers of images with this number of patches."""
    return [what for what, count in CLASSIFIERS.items() if count == tokens]


def cost_cases() -> Iterator[Case]:
    """A hybrid encoder's training pass against each of length, batch and depth, the other two fixed."""
    sizes = [(tokens, 1, 8) for tokens in COST_TOKENS]
    sizes += [(196, batch, 8) for batch in COST_BATCHES]
    sizes += [(196, 1, depth) for depth in COST_DEPTHS]
    for tokens, batch, depth in dict.fromkeys(sizes):
        yield Case("cost", "hybrid", tokens, batch, kind="both", depth=depth)


PARTS: dict[str, Callable[[], Iterable[Case]]] = {
    "blocks": lambda: (*block_cases("fp32", BLOCK_TOKENS), *block_cases("bf16", BF16_TOKENS)),
    "models": model_cases,
    "inference": inference_cases,
    "commands": command_cases,
    "cost": cost_cases,
}


def groups(cases: Iterable[Case]) -> list[list[Case]]:
    """Groups of cases that run alternately: the same pass on the same shape, by different contenders."""
    by_shape: dict[Case, list[Case]] = {}
    for case in cases:
        by_shape.setdefault(replace(case, what=""), []).append(case)
    return list(by_shape.values())


def quick(cases: tuple[Case, ...]) -> tuple[Case, ...]:
    """The same contenders in tiny sizes, to try the scripts: 16 tokens, two sequences, four blocks."""
    tiny = (
        replace(
            case,
            tokens=case.tokens if case.part in ("inference", "commands") else 16,
            batch=2,
            depth=min(case.depth, 4),
        )
        for case in cases
    )
    return tuple(dict.fromkeys(tiny))
