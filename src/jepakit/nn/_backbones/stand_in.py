"""`stand_in`: a module with a few attributes replaced, beside the module, for one call."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn


def stand_in(module: Any, **attributes: Any) -> Any:
    """Return a module that has some attributes of its own, and takes all others from `module`.

    It runs the methods of the module's class with the module's parameters, children, hooks and
    mode. The module itself is not touched, so calls in other threads and later ones see nothing,
    and an error leaves nothing behind:

    >>> linear = nn.Linear(2, 2)
    >>> doubled = stand_in(linear, weight=2 * linear.weight)
    >>> doubled.bias is linear.bias
    True
    """
    copy: Any = object.__new__(_class_of(type(module)))
    # Not to `__dict__`, and not with `copy.copy`: torch 2.6 to 2.9 cannot trace these.
    object.__setattr__(copy, "_stands_for", module)
    for name, value in attributes.items():
        object.__setattr__(copy, name, value)
    return copy


# Compiled graphs take the class as it is: they cannot make one.
@torch.compiler.assume_constant_result
@cache
def _class_of(kind: type[nn.Module]) -> type[nn.Module]:
    def __getattr__(self: Any, name: str) -> Any:
        return getattr(self._stands_for, name)

    return type(kind.__name__, (kind,), {"__getattr__": __getattr__})


_NO_HOOKS: dict[str, Any] = {
    name: {}
    for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
}


def followed_by(module: nn.Module, function: Callable[[Any], Any]) -> Any:
    """Return a stand-in that calls the module, hooks included, and a function on its output."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        return function(module(*args, **kwargs))

    return stand_in(module, forward=forward, **_NO_HOOKS)
