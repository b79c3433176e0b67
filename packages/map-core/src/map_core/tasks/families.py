"""Checkpoint families: files that others published, recognised by their keys and turned into our names."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from map_core.errors import UserError, reason, some_of

State = Mapping[str, Tensor]
SHOWN = 3  # keys in a message


@dataclass(frozen=True)
class Converted:
    """A checkpoint in this project's names, and what model it belongs to.

    Attributes:
        state: The model's parameters, by our names.
        model: The ``model`` section that fits them: ``name``, and what differs from it.
        asked: Settings of ``model`` that neither the file nor a published model shows; a sentence for each says so, and
            whoever converts the file gives them.
        guessed: Settings of ``model`` that no file shows and a published model does; a sentence for each, of
            :func:`guess`, says so to whoever does not give them.
        holds: What that is: ``encoder`` (as pretrained, probed), ``classifier``, or what else the domain builds.
        switches: Settings of ``model`` that say what the weights compute and that no shape shows; a model that
            starts from the file must have been made with them. It says so in its ``switches``, where a name that
            is absent plays no part in it.
        classes: What the outputs of a classifier are called, in their order.
        more: Further entries of the description, which a domain's builder of what else it holds reads.
        prepared: How inputs are prepared, as :attr:`~map_core.tasks.domain.OpenedData.preprocessing`.
        rest: Decoder and head of the objective, by our names; empty where the file has none.
        objective: The ``objective`` section that fits ``rest``.
        left: Keys of the file that nothing here needs.
        notes: What differs all the same, a sentence each.
    """

    state: dict[str, Tensor]
    model: dict[str, Any]
    asked: dict[str, str] = field(default_factory=dict)
    guessed: dict[str, str] = field(default_factory=dict)
    holds: str = "encoder"
    switches: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    more: dict[str, Any] = field(default_factory=dict)
    prepared: dict[str, Any] = field(default_factory=dict)
    rest: dict[str, Tensor] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    left: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def guess(setting: str, what: str, value: Any) -> dict[str, str]:
    """One of :attr:`Converted.guessed`: what no file says of a setting, and its published value.

    >>> guess("num_heads", "how many attention heads there are", 12)["num_heads"]
    'no file says how many attention heads there are: 12, as published, unless --model.num_heads says otherwise'
    """
    return {setting: f"no file says {what}: {value}, as published, unless --model.{setting} says otherwise"}


@dataclass(frozen=True)
class Family:
    """Files of one origin.

    Keys are written as patterns in which ``#`` is a number and ``*`` anything.

    >>> vit = Family("vit", ("cls_token", "blocks.#.attn.qkv.weight"), ("head.*",), convert=lambda state: None)
    >>> vit.unknown(["cls_token", "blocks.11.attn.qkv.weight", "head.bias", "blocks.0.gamma"])
    ['blocks.0.gamma']

    Attributes:
        name: As messages call it.
        required: Keys that every file of the family has.
        optional: Further keys that it may have.
        convert: Of a state without wrappers and prefixes.

    Raises:
        UserError: ``convert`` meets a variant that cannot be converted, and says why.
    """

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    convert: Callable[[State], Converted]

    def unknown(self, keys: Sequence[str]) -> list[str]:
        """The keys that no file of the family has."""
        known = _matcher((*self.required, *self.optional))
        return [key for key in keys if not known.fullmatch(key)]

    def lacking(self, keys: Sequence[str]) -> list[str]:
        """The required patterns that no key matches."""
        return [pattern for pattern in self.required if not any(map(_matcher((pattern,)).fullmatch, keys))]

    def converted(self, state: State, source: Any) -> Converted:
        """Convert a file's state, whose names alone are known to be the family's.

        Args:
            state: Without wrappers and prefixes.
            source: What messages call it.

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
        return not self.lacking(keys) and not self.unknown(keys)


@cache
def _matcher(patterns: tuple[str, ...]) -> re.Pattern[str]:
    escaped = (re.escape(pattern).replace(r"\#", r"\d+").replace(r"\*", ".*") for pattern in patterns)
    return re.compile("|".join(escaped))


def family_of(state: State, families: Sequence[Family]) -> Family | None:
    """The family that a file is of; None for none of them, or a file of ours."""
    keys = list(state)
    return next((family for family in families if family.has(keys)), None)


def refuse_unknown(state: State, families: Sequence[Family], source: Path) -> None:
    """Say that a file is of no family, which comes nearest, and what speaks against it.

    Raises:
        UserError: always.
    """
    keys = list(state)
    nearest = min(families, key=lambda family: (len(family.unknown(keys)), len(family.lacking(keys))))
    odd, lacking = nearest.unknown(keys), nearest.lacking(keys)
    against = f"{len(odd)} of its {len(keys)} keys are none of that: {some_of(odd, SHOWN)}" if odd else ""
    if lacking:
        against += f"{', and ' if odd else ''}it lacks {some_of(lacking, SHOWN)}"
    raise UserError(
        f"{source} is a checkpoint of no family that is known here; nearest: {nearest.name}, but {against}; known: "
        f"{', '.join(family.name for family in families)}"
    )


def depth(state: State, prefix: str) -> int:
    """Number of layers whose keys begin with ``prefix`` and a number.

    Raises:
        UserError: one is left out, as where a single one is called the billionth.
    """
    numbers = {key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)}
    missing = next((number for number in map(str, range(len(numbers))) if number not in numbers), None)
    if missing is not None:
        raise UserError(
            f"it has {len(numbers)} layers called {prefix}#, and none of them is {prefix}{missing}"
        )
    return len(numbers)
