"""Registration with timm once timm is imported: that takes seconds, so ``import map_vision`` alone does not do it."""

import importlib
import importlib.util
import sys
from collections.abc import Iterable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

TIMM, REGISTRY = "timm.models", "map_vision.registry"


def register_once_timm_is_imported() -> None:
    """Import the registry now, or as soon as timm is imported."""
    if TIMM in sys.modules:
        importlib.import_module(REGISTRY)
    else:
        sys.meta_path.insert(0, AfterTimm())


class AfterTimm(MetaPathFinder):
    """Finds ``timm.models`` through the other finders and imports the registry right after it."""

    def find_spec(
        self, fullname: str, path: Iterable[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != TIMM:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                importlib.import_module(REGISTRY)

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
