"""A command's configuration as a table of options: type, help and default in one line each."""

from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass, make_dataclass
from typing import Any

from map_core.commands.settings import FORMS, REQUIRED


@dataclass(frozen=True)
class Option:
    """One option, or a section of them where ``kind`` is a dataclass.

    Attributes:
        kind: Its type.
        help: One sentence.
        default: Its default value, or REQUIRED where there is none (sections have their own defaults).
        forms: The forms of a section that comes in several, by the value of its setting ``method``; ``kind`` is the
            default form.
    """

    kind: Any
    help: str
    default: Any = REQUIRED
    forms: Mapping[str, type] | None = None


def config_class(name: str, summary: str, **options: Option) -> type:
    """Make the dataclass that a command's arguments are parsed into; its docstring explains every field.

    Args:
        name: Name of the class.
        summary: First sentence of the docstring.
        options: In the order of the fields; required ones first.
    """
    fields: list[Any] = []
    for key, option in options.items():
        if isinstance(option.kind, type) and is_dataclass(option.kind):
            forms = {} if option.forms is None else {FORMS: option.forms}
            fields.append((key, option.kind, field(default_factory=option.kind, metadata=forms)))
        elif option.default is REQUIRED:
            fields.append((key, option.kind))
        else:
            fields.append((key, option.kind, field(default=option.default)))
    docs = "\n".join(f"    {key}: {option.help}" for key, option in options.items())
    return make_dataclass(name, fields, namespace={"__doc__": f"{summary}\n\nArgs:\n{docs}\n"})
