"""Modules with a few attributes replaced, beside the modules, for one call."""

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

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
    copy: Any = object.__new__(_make_class(type(module)))
    # Not to `__dict__`, and not with `copy.copy`: torch 2.6 to 2.9 cannot trace these.
    object.__setattr__(copy, "_stands_for", module)
    for name in _names(type(module)):
        if name in module.__dict__:  # which the class's own attribute would hide
            value = module.__dict__[name]
            if isinstance(value, MethodType) and value.__self__ is module:
                value = partial(value.__func__, copy)
            object.__setattr__(copy, name, value)
    for name in _HOOKS:
        if hooks := getattr(module, name):  # they are given the module itself
            bound = {key: partial(_call_hook, hook, module) for key, hook in hooks.items()}
            object.__setattr__(copy, name, bound)
    for name, value in attributes.items():
        object.__setattr__(copy, name, value)
    return copy


_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def _call_hook(hook: Callable[..., Any], module: nn.Module, _copy: nn.Module, *args: Any) -> Any:
    return hook(module, *args)


def _names(kind: type[nn.Module]) -> tuple[str, ...]:
    """Methods and attributes of a class and its bases, without those of `nn.Module`."""
    bases = [base for base in kind.__mro__ if not issubclass(nn.Module, base)]
    return tuple({name: None for base in bases for name in vars(base) if name[:2] != "__"})


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _make_class(kind: type[nn.Module]) -> type[nn.Module]:
    if kind not in _CLASSES:

        def __getattr__(self: Any, name: str) -> Any:
            return getattr(self._stands_for, name)

        _CLASSES[kind] = type(kind.__name__, (kind,), {"__getattr__": __getattr__})
    return _CLASSES[kind]


# Not traced: a graph takes the class as it is, and cannot make one. This is the mark that
# `torch.compiler.assume_constant_result` sets; calling that would import the whole compiler.
_names._dynamo_marked_constant = True  # type: ignore[attr-defined]
_make_class._dynamo_marked_constant = True  # type: ignore[attr-defined]


class FollowedBy:
    """A module, hooks included, and a function of its output; has the module's attributes."""

    def __init__(self, module: nn.Module, function: Callable[[Any], Any]) -> None:
        self._module = module
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(self._module(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)
