"""Checkpoint families: files that others published, recognised by their keys and converted to our names."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from map_core.errors import UserError, abbreviate, reason

State = Mapping[str, Tensor]
KEYS_SHOWN = 3  # in a message


@dataclass(frozen=True)
class Guess:
    """A setting that no file of a family shows.

    Attributes:
        what: What the setting says, in words.
        value: Its published value.
    """

    what: str
    value: Any

    def note(self, setting: str) -> str:
        """The sentence for whoever does not give the setting.

        >>> Guess("how many attention heads there are", 12).note("num_heads")
        'no file says how many attention heads there are: 12, as published, unless --model.num_heads says otherwise'
        """
        value = " ".join(map(str, self.value)) if isinstance(self.value, tuple) else self.value
        return f"no file says {self.what}: {value}, as published, unless --model.{setting} says otherwise"


def guessed_heads(heads: int | tuple[int, ...]) -> dict[str, Guess]:
    """``num_heads`` as a guess: the weights of attention have the same shapes whatever the number of heads."""
    return {"num_heads": Guess("how many attention heads there are", heads)}


@dataclass(frozen=True)
class Converted:
    """A checkpoint in this project's names, and the model that it belongs to.

    Attributes:
        state: The model's parameters, by our names.
        model: The ``model`` section that fits them: ``name``, and what differs from it.
        required_settings: Settings of ``model`` that neither the file nor a published model shows; a sentence for each
            says so, and whoever converts the file must give them.
        guessed_settings: Settings of ``model`` that only a published model shows, not the file; whoever does not give
            them is told so, and a model whose ``invisible_settings`` have other values is warned of.
        holds: What ``state`` is: ``encoder`` (as pretrained, probed), ``classifier``, or another kind that the domain
            builds.
        invisible_settings: Settings of ``model`` that change what the weights compute without changing a shape. A model
            that starts from the file must have the same values in its ``invisible_settings``; a name that is absent
            there does not matter to it.
        classes: Names of a classifier's outputs, in order.
        extra_description: Further entries of the description, read by a domain's builder of other kinds.
        preprocessing: How inputs are prepared, as :attr:`~map_core.tasks.domain.OpenedData.preprocessing`.
        decoder_state: Decoder and head of the objective, by our names; empty where the file has none.
        objective: The ``objective`` section that fits ``decoder_state``.
        unused: Keys of the file that nothing here needs.
        notes: Differences that remain, a sentence each.
    """

    state: dict[str, Tensor]
    model: dict[str, Any]
    required_settings: dict[str, str] = field(default_factory=dict)
    guessed_settings: dict[str, Guess] = field(default_factory=dict)
    holds: str = "encoder"
    invisible_settings: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    extra_description: dict[str, Any] = field(default_factory=dict)
    preprocessing: dict[str, Any] = field(default_factory=dict)
    decoder_state: dict[str, Tensor] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """Checkpoints of one origin.

    Keys are written as patterns in which ``#`` is a number and ``*`` anything.

    >>> vit = Family("vit", ("cls_token", "blocks.#.attn.qkv.weight"), ("head.*",), convert=lambda state: None)
    >>> vit.unknown(["cls_token", "blocks.11.attn.qkv.weight", "head.bias", "blocks.0.gamma"])
    ['blocks.0.gamma']

    Attributes:
        name: Used in messages.
        required: Keys that every file of the family has.
        optional: Further keys that it may have.
        convert: Converts a state dict without wrappers and prefixes.

    Raises:
        UserError: ``convert`` meets a variant that cannot be converted, and says why.
    """

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    convert: Callable[[State], Converted]

    def unknown(self, keys: Sequence[str]) -> list[str]:
        """The keys that no file of the family has."""
        matcher = _matcher((*self.required, *self.optional))
        return [key for key in keys if not matcher.fullmatch(key)]

    def missing(self, keys: Sequence[str]) -> list[str]:
        """The required patterns that no key matches."""
        return [pattern for pattern in self.required if not any(map(_matcher((pattern,)).fullmatch, keys))]

    def convert_file_state(self, state: State, source: Any) -> Converted:
        """Convert a file's state dict, of which only the names are known to be the family's.

        Args:
            state: Without wrappers and prefixes.
            source: Its name in messages.

        Raises:
            UserError: a variant that cannot be converted, or tensors of other shapes.
        """
        try:
            return self.convert(state)
        except UserError as error:
            raise UserError(f"{source}: {error}") from error
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                f"{source} has the names of {self.name}, but other shapes ({reason(error)}): download it again"
            ) from error

    def has(self, keys: Sequence[str]) -> bool:
        """Whether a file with these keys is of the family."""
        return not self.missing(keys) and not self.unknown(keys)


@cache
def _matcher(patterns: tuple[str, ...]) -> re.Pattern[str]:
    escaped = (re.escape(pattern).replace(r"\#", r"\d+").replace(r"\*", ".*") for pattern in patterns)
    return re.compile("|".join(escaped))


def family_of(state: State, families: Sequence[Family]) -> Family | None:
    """The family that a file belongs to; None if there is none, as for a file of ours."""
    keys = list(state)
    return next((family for family in families if family.has(keys)), None)


def refuse_unknown(state: State, families: Sequence[Family], source: Path) -> NoReturn:
    """Refuse a file of no known family, and say which is the nearest and what speaks against it.

    Raises:
        UserError: always.
    """
    keys = list(state)
    nearest = min(families, key=lambda family: (len(family.unknown(keys)), len(family.missing(keys))))
    unknown, missing = nearest.unknown(keys), nearest.missing(keys)
    objections: list[str] = []
    if unknown:
        examples = abbreviate(unknown, KEYS_SHOWN)
        objections.append(f"{len(unknown)} of its {len(keys)} keys are none of that: {examples}")
    if missing:
        objections.append(f"it lacks {abbreviate(missing, KEYS_SHOWN)}")
    raise UserError(
        f"{source} is a checkpoint of no family that is known here; nearest: {nearest.name}, but "
        f"{', and '.join(objections)}; known: {', '.join(family.name for family in families)}"
    )


def depth(state: State, prefix: str) -> int:
    """Number of layers whose keys begin with ``prefix`` and a number.

    Raises:
        UserError: a number is missing, as where the only layer is called the billionth.
    """
    numbers = {key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)}
    missing = next((number for number in map(str, range(len(numbers))) if number not in numbers), None)
    if missing is not None:
        raise UserError(
            f"it has {len(numbers)} layers called {prefix}#, and none of them is {prefix}{missing}"
        )
    return len(numbers)
