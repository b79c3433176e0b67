"""A measure for studies, as a package would add it: how much its program wrote."""

import sys
from pathlib import Path
from typing import Any

from map_core.errors import UserError
from map_core.study.measures import Cost

CODE = "import pathlib, sys; out = pathlib.Path(sys.argv[1]); out.mkdir(); (out / 'text').write_text(sys.argv[2])"


class Length:
    """Bytes of a text that lists the settings of a run."""

    title, score, shared = "length", "bytes", ("file",)

    def check(self, settings: dict[str, Any]) -> None:
        if "" in settings.values():
            raise UserError("a setting is empty: give a text")

    def command(self, settings: dict[str, Any], *, seed: int, init: str | None, out: Path) -> list[str]:
        return [
            sys.executable,
            "-c",
            CODE,
            str(out),
            f"{init or 'scratch'} {seed} {' '.join(settings.values())}",
        ]

    def summary(self, out: Path) -> dict[str, Any]:
        return {"bytes": len((out / "text").read_text())}

    def cost(self, settings: dict[str, Any], *, timed: bool = False) -> Cost:
        return Cost(samples=1, flops=2.0)


LENGTH = Length()
