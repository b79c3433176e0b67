"""Functions that ``torch.fx`` keeps as a single call in a graph, because they read sizes."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from torch.fx import Proxy
from torch.overrides import handle_torch_function

P = ParamSpec("P")
R = TypeVar("R")


def fx_leaf(function: Callable[P, R]) -> Callable[P, R]:
    """Trace a function as one call in a ``torch.fx`` graph, instead of as its operations at the sizes of one input.

    Args:
        function: Defined at the top level of a module, and called with the traced values as positional arguments.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if any(isinstance(arg, Proxy) for arg in args):
            return handle_torch_function(call, args, *args, **kwargs)
        return function(*args, **kwargs)

    return call
