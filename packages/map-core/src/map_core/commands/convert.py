"""The command ``convert``: other projects' checkpoints as runs of ours."""

from dataclasses import asdict, field, make_dataclass
from functools import cache
from typing import Any

from map_core.commands.options import Option, config_class
from map_core.errors import UserError
from map_core.paths import expand_user
from map_core.ranges import check
from map_core.reading import read_small
from map_core.runs.files import require_folder
from map_core.runs.notes import tell
from map_core.tasks.conversion import convert_checkpoint
from map_core.tasks.domain import Domain


@cache
def convert_config(domain: Domain) -> type:
    """The configuration, for a domain that knows families of checkpoints."""
    return config_class(
        "ConvertConfig",
        f"A checkpoint of another project as {domain.program} reads it: weights, JSON, and the decoder, if any.",
        file=Option(str, f"The checkpoint: {', '.join(family.name for family in domain.models.families)}."),
        out=Option(str, "Directory for model.safetensors and model.json."),
        model=Option(
            changes_of(domain), "What the checkpoint does not show, or another size to resample to."
        ),
        decoder_heads=Option(int | None, "Attention heads of the decoder, if there is one.", None),
        classes=Option(
            str | None, "Text file with the classes' names, one per line, in the outputs' order.", None
        ),
    )


def changes_of(domain: Domain) -> type:
    """The domain's model section, whose name is optional."""
    kind = domain.models.config
    name: Any = ("name", str | None, field(default=None))
    return make_dataclass("ModelChanges", [name], bases=(kind,), namespace={"__doc__": kind.__doc__})


def convert(domain: Domain, config: Any) -> None:
    """Convert a checkpoint and report the result.

    Raises:
        UserError: decoder_heads is below 1, or the list of classes cannot be read; see
            :func:`~map_core.tasks.conversion.convert_checkpoint`.
    """
    check("", config, at_least_one=("decoder_heads",))
    out = expand_user(config.out)
    require_folder(out)
    changes = {key: value for key, value in asdict(config.model).items() if value is not None}
    heads = {} if config.decoder_heads is None else {"decoder_heads": config.decoder_heads}
    report = convert_checkpoint(
        domain,
        config.file,
        out,
        model=changes,
        objective=heads,
        classes=read_classes(config.classes),
    )
    tell(f"{report}\n-> {out}")


def read_classes(path: str | None) -> tuple[str, ...]:
    """Read names of classes, one per line.

    Raises:
        UserError: the file cannot be read.
    """
    if path is None:
        return ()
    try:
        lines = read_small(expand_user(path)).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"classes {path} cannot be read ({error}); give a text file with one name a line"
        ) from error
    return tuple(line.strip() for line in lines if line.strip())
