"""Which implementation of an op serves a call: the one named by the caller, or the best that can."""

import importlib.util
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from map_core.errors import UserError, near_matches
from map_core.ops.exporting import exporting

logger = logging.getLogger(__name__)
NOT_INSTALLED = "is not installed"


@dataclass(frozen=True)
class Request:
    """A call to serve: device type, dtype of the input, size of the op, and whether the caller named a backend.

    The size is the number of states of a scan, taps of a convolution, multiplications of a linear layer or points to
    pick, or the dimension of an attention head. ``facts`` are further properties of the call, in words that the op
    defines.
    """

    device: str
    dtype: torch.dtype
    size: int
    named: bool = False
    facts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Implementation:
    """One way of computing an op.

    Attributes:
        name: Its name in ``backend=``.
        run: The op itself; its arguments are the same for every implementation of the op.
        missing: Why it cannot run on this installation, or None; evaluated at the first call.
        unfit: Why it cannot serve this request, or None.
        automatic: False for the definition, which ``backend="auto"`` never picks.
        fused: A further entry point that serves two calls of ``run`` at once, or None.
    """

    name: str
    run: Callable[..., torch.Tensor]
    missing: Callable[[], str | None] = lambda: None
    unfit: Callable[[Request], str | None] = lambda request: None
    automatic: bool = True
    fused: Callable[..., torch.Tensor] | None = None


@dataclass(frozen=True)
class BackendStatus:
    """Whether an implementation can run on this installation, and if not, why."""

    name: str
    available: bool
    reason: str

    def __str__(self) -> str:
        """Return what ``info`` prints: available, which package is not installed, or why it is refused."""
        if self.available:
            return "available"
        return self.reason if self.reason.endswith(NOT_INSTALLED) else f"refused: {self.reason}"


class Registry:
    """The implementations of one op, best first.

    Args:
        op: Name of the op, for messages.
        implementations: Best first; the last automatic one must serve every request.
        exported: What ``backend="auto"`` picks within :func:`~map_core.ops.exporting.for_export`; never by name.
    """

    def __init__(
        self, op: str, implementations: tuple[Implementation, ...], *, exported: Implementation | None = None
    ) -> None:
        self.op = op
        self._implementations = {item.name: item for item in implementations}
        self._exported = exported
        self._refusals: dict[str, str | None] = {}
        self._announced: set[str] = set()

    def __getitem__(self, name: str) -> Implementation:
        if self._exported is not None and name == self._exported.name:
            return self._exported
        return self._implementations[name]

    def statuses(self) -> tuple[BackendStatus, ...]:
        """Return the state of every implementation, best first; looks for optional packages if necessary."""
        refusals = {name: self._missing(name) for name in self._implementations}
        return tuple(BackendStatus(name, reason is None, reason or "") for name, reason in refusals.items())

    def describe(self, title: str) -> list[str]:
        """Return the lines of ``info``: the title, then each implementation and its state."""
        return [title, *(f"  {status.name:14} {status}" for status in self.statuses())]

    def forget(self) -> None:
        """Look for optional packages again at the next call."""
        self._refusals.clear()
        self._announced.clear()

    def choose(self, backend: str, device: str, dtype: torch.dtype, size: int, *facts: str) -> str:
        """Return the name of the implementation that serves the request, which torch.compile holds as a constant.

        Raises:
            UserError: ``backend`` is unknown, cannot run here or cannot serve this request.
        """
        request = Request(device, dtype, size, named=backend != "auto", facts=facts)
        if backend != "auto":
            self._check(backend, request)
            return backend
        if self._exported is not None and exporting():
            return self._exported.name
        for name, item in self._implementations.items():
            if item.automatic and item.unfit(request) is None and self._missing(name) is None:
                self._announce(name, device)
                return name
        raise AssertionError(f"{self.op}: no automatic implementation serves {request}")

    def check_name(self, backend: str) -> None:
        """Refuse a backend that no implementation has.

        Raises:
            UserError: It suggests the nearest names.
        """
        if backend != "auto" and backend not in self._implementations:
            hint = near_matches(backend, ["auto", *self._implementations])
            raise UserError(f"{self.op}: unknown backend={backend!r}; {hint}")

    def _check(self, backend: str, request: Request) -> None:
        self.check_name(backend)
        reason = self._missing(backend) or self._implementations[backend].unfit(request)
        if reason:
            raise UserError(
                f"{self.op}: backend={backend!r} cannot serve this call: {reason}; "
                "backend='auto' picks one that can"
            )

    def _missing(self, name: str) -> str | None:
        if name not in self._refusals:
            self._refusals[name] = self._implementations[name].missing()
        return self._refusals[name]

    def _announce(self, name: str, device: str) -> None:
        if device not in self._announced:
            self._announced.add(device)
            logger.info("%s on %s: backend='auto' picked %r", self.op, device, name)


def optional_import(package: str, load: Callable[[], Any]) -> str | None:
    """Run ``load`` and return None, or why it failed; a package that cannot be found counts as not installed.

    Compiled extensions fail with OSError, RuntimeError or AttributeError as readily as with ImportError.
    """
    try:
        load()
    except Exception as error:
        if package not in sys.modules and importlib.util.find_spec(package) is None:
            return f"{package} {NOT_INSTALLED}"
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None
