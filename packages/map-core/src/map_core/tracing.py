"""What ``torch.fx`` is to keep as one call of a graph, because it reads sizes."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from torch.fx import Proxy
from torch.overrides import handle_torch_function

P = ParamSpec("P")
R = TypeVar("R")


def kept_whole(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function one call of a ``torch.fx`` graph instead of what it does to the sizes of one input.

    Args:
        function: Of a module's top level, called with what is traced among its positional arguments.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if any(isinstance(arg, Proxy) for arg in args):
            return handle_torch_function(call, args, *args, **kwargs)
        return function(*args, **kwargs)

    return call
