"""Backbone settings from a config or a command line: convert lists to tuples, check types and numbers."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import NoneType
from typing import Any, get_type_hints

from map_core.commands.values import alternatives, expectation
from map_core.errors import UserError
from map_core.json_values import is_whole
from map_core.tasks.setting_values import fits
from map_vision.factory import ModelConfig


def lists_to_tuples(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with every list converted to a tuple."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}


@contextmanager
def naming_backbone() -> Iterator[None]:
    """Let errors about a model name its settings as a config does: ``model.backbone.NAME``, not ``--model.NAME``."""
    try:
        yield
    except UserError as error:
        message = re.sub(r", or set --model '.*'", "", str(error))  # which is no form of a config's
        raise UserError(re.sub(r"(--)?\bmodel\.(?=\w)", "model.backbone.", message)) from error


def check_types(config: ModelConfig) -> None:
    """Require values of the settings' types: ``--cfg-options`` keeps words such as ``no`` as texts.

    Raises:
        UserError: naming the first setting of another type.
    """
    kinds = get_type_hints(type(config))
    for name, value in config.arguments().items():
        if not fits(value, kinds[name]):
            allowed = [expectation(kind) for kind in alternatives(kinds[name]) if kind is not NoneType]
            raise UserError(f"model.backbone.{name} must be {' or '.join(allowed)}; got {value!r}")


def check_switch(name: str, value: Any) -> None:
    """Require True or False: any text, such as ``off``, would count as True.

    Raises:
        UserError: anything else.
    """
    if not isinstance(value, bool):
        raise UserError(f"{name} must be True or False; got {value!r}")


def check_count(name: str, value: Any, otherwise: str) -> None:
    """Require a whole number of at least 1, or None, which means ``otherwise``.

    Raises:
        UserError: anything else.
    """
    if value is not None and not (is_whole(value) and value >= 1):
        raise UserError(f"{name} must be a whole number of at least 1, or None {otherwise}; got {value!r}")


def check_frozen_stages(frozen_stages: Any, count: int, *, first: str, stages: str) -> None:
    """Require a number of frozen stages: -1 for nothing, 0 for ``first`` alone, n also for the first n ``stages``.

    Raises:
        UserError: not a whole number, or one outside -1..``count``.
    """
    if not (is_whole(frozen_stages) and -1 <= frozen_stages <= count):
        raise UserError(
            f"frozen_stages must be a whole number in -1..{count}, the {stages} of the backbone; got "
            f"{frozen_stages!r}: -1 freezes nothing, 0 the {first}, n also the first n {stages}"
        )
