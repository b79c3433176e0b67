"""What the tests of all packages share."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure


@pytest.fixture(scope="session", autouse=True)
def curves_drawn() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Leave curves.png of runs empty, as drawing it takes longer than a toy trains; ``with curves_drawn():`` draws."""
    draw = Figure.savefig

    def save(figure: Figure, path: Path, **options: Any) -> None:
        if str(path).endswith("curves.png"):
            Path(path).touch()
        else:
            draw(figure, path, **options)

    @contextmanager
    def drawn() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Figure, "savefig", draw)
            yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save)
        yield drawn
