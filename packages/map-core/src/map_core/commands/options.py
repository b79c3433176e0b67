"""A command's configuration as a table of options: type, help and default in one line each."""

from dataclasses import dataclass, field, is_dataclass, make_dataclass
from typing import Any

from map_core.commands.settings import REQUIRED


@dataclass(frozen=True)
class Option:
    """One option, or a section of them where ``kind`` is a dataclass.

    Attributes:
        kind: Its type.
        help: One sentence.
        default: Its value where none is given; REQUIRED where it must be (sections have their own defaults).
    """

    kind: Any
    help: str
    default: Any = REQUIRED


def config_class(name: str, summary: str, **options: Option) -> type:
    """Make the dataclass that a command's arguments are parsed into; its docstring explains every field.

    Args:
        name: Of the class.
        summary: First sentence of the docstring.
        options: In the order of the fields; required ones first.
    """
    fields: list[Any] = []
    for key, option in options.items():
        if isinstance(option.kind, type) and is_dataclass(option.kind):
            fields.append((key, option.kind, field(default_factory=option.kind)))
        elif option.default is REQUIRED:
            fields.append((key, option.kind))
        else:
            fields.append((key, option.kind, field(default=option.default)))
    explained = "\n".join(f"    {key}: {option.help}" for key, option in options.items())
    return make_dataclass(name, fields, namespace={"__doc__": f"{summary}\n\nArgs:\n{explained}\n"})
