"""Sections that come in several forms: ``objective.method`` decides which settings ``objective`` has.

A recipe (or a command line) that selects another form drops those settings of the recipes below it which this form
lacks; its own settings must be the form's.
"""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from map_core.commands.messages import misfit
from map_core.commands.recipes import Layer
from map_core.commands.settings import FORM, FORMS, Setting, collect_settings
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
    """The settings of a configuration in all forms of its sections."""
    settings = collect_settings(config_class)
    for section, forms in forms_of(config_class).items():
        for form in forms.values():
            settings = collect_settings(form, f"{section}.") | settings
    return settings


def choose_forms(
    config_class: type, layers: Sequence[Layer], command_line: Layer
) -> tuple[type, list[Layer]]:
    """Give the sections the forms that the recipes and the command line select.

    Args:
        config_class: The configuration, with default forms.
        layers: Layers of the recipes, lowest first.
        command_line: The layer above them.

    Returns:
        The configuration with the selected forms, and the recipes' layers without the settings that a form selected
        further up drops.

    Raises:
        UserError: an unknown form, or a setting that the selected one does not have.
    """
    all_layers = [*layers, command_line]
    for section, forms in forms_of(config_class).items():
        selected, selected_at = next(iter(forms)), 0
        for index, layer in enumerate(all_layers):
            form = selected_form(layer, section, forms)
            if form not in (None, selected):
                selected, selected_at = str(form), index
        foreign = {entry.name for kind in forms.values() for entry in dataclasses.fields(kind)}
        foreign -= {entry.name for entry in dataclasses.fields(forms[selected])}
        all_layers = [
            without(layer, section, foreign) if index < selected_at else layer
            for index, layer in enumerate(all_layers)
        ]
        for layer in all_layers:
            refuse_foreign_settings(layer, section, selected, forms, foreign)
        config_class = with_form(config_class, section, forms[selected])
    return config_class, all_layers[:-1]


def selected_form(layer: Layer, section: str, forms: Forms) -> str | None:
    """The form that a layer selects, or None.

    Raises:
        UserError: there is no such form.
    """
    value = section_values(layer, section).get(FORM)
    if value is None:
        return None
    kind: Any = Literal[tuple(forms)]
    try:
        return str(convert(value, kind))
    except MismatchError as error:
        place = f"{section}.{FORM} in {layer.source}" if layer.source else f"--{section}.{FORM}"
        raise UserError(misfit(place, value, error, kind)) from error


def refuse_foreign_settings(
    layer: Layer, section: str, selected: str, forms: Forms, foreign: set[str]
) -> None:
    """Refuse settings that only other forms have, rather than ignore them.

    Raises:
        UserError: naming the setting, the selected form, and those that have it.
    """
    for key in section_values(layer, section):
        if key in foreign:
            name = f"{section}.{key} in {layer.source}" if layer.source else f"--{section}.{key}"
            owners = ", ".join(
                form
                for form, kind in forms.items()
                if key in {entry.name for entry in dataclasses.fields(kind)}
            )
            raise UserError(
                f"{name} is not a setting of {section}.{FORM} {selected} (but of {owners}): leave it out, or choose "
                f"another {section}.{FORM}"
            )


def section_values(layer: Layer, section: str) -> Mapping[str, Any]:
    """A section of a layer; empty where it is absent or no mapping."""
    values = layer.values.get(section) if isinstance(layer.values, dict) else None
    return values if isinstance(values, dict) else {}


def without(layer: Layer, section: str, keys: set[str]) -> Layer:
    """A layer without some settings of a section."""
    values = section_values(layer, section)
    if not keys & values.keys():
        return layer
    rest = {key: value for key, value in values.items() if key not in keys}
    return replace(layer, values={**layer.values, section: rest})


def with_form(config_class: type, section: str, form: type) -> type:
    """A configuration whose section has the given form."""
    entry = next(entry for entry in dataclasses.fields(config_class) if entry.name == section)
    if typing.get_type_hints(config_class)[section] is form:
        return config_class
    form_field: Any = dataclasses.field(default_factory=form, metadata=entry.metadata)
    return dataclasses.make_dataclass(
        config_class.__name__,
        [(section, form, form_field)],
        bases=(config_class,),
        namespace={"__doc__": config_class.__doc__},
    )
