"""Modules with a few attributes replaced, beside the modules, for one call."""

from collections.abc import Callable
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


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _make_class(kind: type[nn.Module]) -> type[nn.Module]:
    if kind not in _CLASSES:

        def __getattr__(self: Any, name: str) -> Any:
            return getattr(self._stands_for, name)

        _CLASSES[kind] = type(kind.__name__, (kind,), {"__getattr__": __getattr__})
    return _CLASSES[kind]


# Not traced: a graph takes the class as it is, and cannot make one.
_class_of: Any = torch.compiler.assume_constant_result(_make_class)  # type: ignore[no-untyped-call]


class FollowedBy:
    """A module, hooks included, and a function of its output; has the module's attributes."""

    def __init__(self, module: nn.Module, function: Callable[[Any], Any]) -> None:
        self._module = module
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(self._module(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)
