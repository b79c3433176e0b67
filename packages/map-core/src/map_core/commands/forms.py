"""Sections that come in several forms: ``objective.method`` decides which settings ``objective`` has.

A recipe (or a command line) that names another form leaves behind what the recipes below say of settings that this
form does not have; what it says itself must be the form's.
"""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from map_core.commands.messages import misfit
from map_core.commands.recipes import Layer
from map_core.commands.settings import FORM, FORMS, Setting, settings
from map_core.commands.values import MismatchError, convert
from map_core.errors import UserError

Forms = Mapping[str, type]


def forms_of(config_class: type) -> dict[str, Forms]:
    """The sections of a configuration that come in several forms: each form by its name, the default first."""
    return {
        entry.name: entry.metadata[FORMS]
        for entry in dataclasses.fields(config_class)
        if FORMS in entry.metadata
    }


def settings_of_all_forms(config_class: type) -> dict[str, Setting]:
    """The settings of a configuration whatever forms its sections have."""
    listed = settings(config_class)
    for section, forms in forms_of(config_class).items():
        for form in forms.values():
            listed = settings(form, f"{section}.") | listed
    return listed


def choose_forms(
    config_class: type, layers: Sequence[Layer], command_line: Layer
) -> tuple[type, list[Layer]]:
    """Give the sections the forms that recipes and command line name.

    Args:
        config_class: The configuration, with default forms.
        layers: Of recipes, lowest first.
        command_line: What is said above them.

    Returns:
        The configuration with the chosen forms, and the recipes' layers without what a form named above leaves behind.

    Raises:
        UserError: an unknown form, or a setting that the chosen one does not have.
    """
    kept = [*layers, command_line]
    for section, forms in forms_of(config_class).items():
        chosen, below = next(iter(forms)), 0
        for place, layer in enumerate(kept):
            named = named_form(layer, section, forms)
            if named not in (None, chosen):
                chosen, below = str(named), place
        other = {entry.name for form in forms.values() for entry in dataclasses.fields(form)}
        other -= {entry.name for entry in dataclasses.fields(forms[chosen])}
        kept = [without(layer, section, other) if i < below else layer for i, layer in enumerate(kept)]
        for layer in kept:
            refuse_other_forms(layer, section, chosen, forms, other)
        config_class = with_form(config_class, section, forms[chosen])
    return config_class, kept[:-1]


def named_form(layer: Layer, section: str, forms: Forms) -> str | None:
    """The form that a layer names, or None.

    Raises:
        UserError: there is no such form.
    """
    value = said(layer, section).get(FORM)
    if value is None:
        return None
    kind: Any = Literal[tuple(forms)]
    try:
        return str(convert(value, kind))
    except MismatchError as error:
        place = f"{section}.{FORM} in {layer.source}" if layer.source else f"--{section}.{FORM}"
        raise UserError(misfit(place, value, error, kind)) from error


def refuse_other_forms(layer: Layer, section: str, chosen: str, forms: Forms, other: set[str]) -> None:
    """Keep settings of other forms from going unheard.

    Raises:
        UserError: naming the setting, the chosen form, and those that have it.
    """
    for key in said(layer, section):
        if key in other:
            name = f"{section}.{key} in {layer.source}" if layer.source else f"--{section}.{key}"
            having = ", ".join(
                form
                for form, kind in forms.items()
                if key in {entry.name for entry in dataclasses.fields(kind)}
            )
            raise UserError(
                f"{name} is no setting of {section}.{FORM} {chosen} (but of {having}): leave it out, or choose "
                f"another {section}.{FORM}"
            )


def said(layer: Layer, section: str) -> Mapping[str, Any]:
    """What a layer says of a section, as far as it is a mapping."""
    values = layer.values.get(section) if isinstance(layer.values, dict) else None
    return values if isinstance(values, dict) else {}


def without(layer: Layer, section: str, keys: set[str]) -> Layer:
    """A layer without some settings of a section."""
    values = said(layer, section)
    if not keys & values.keys():
        return layer
    rest = {key: value for key, value in values.items() if key not in keys}
    return replace(layer, values={**layer.values, section: rest})


def with_form(config_class: type, section: str, form: type) -> type:
    """A configuration whose section has a form."""
    entry = next(entry for entry in dataclasses.fields(config_class) if entry.name == section)
    if typing.get_type_hints(config_class)[section] is form:
        return config_class
    chosen: Any = dataclasses.field(default_factory=form, metadata=entry.metadata)
    return dataclasses.make_dataclass(
        config_class.__name__,
        [(section, form, chosen)],
        bases=(config_class,),
        namespace={"__doc__": config_class.__doc__},
    )
