"""Every public callable, with one tensor of its docstring's example changed.

The call is taken, or refused by an error of jepakit's own that names one of its tensors. The hook
would check shapes; without it, as users run the library, a wrong tensor may not end in an error of
torch, einops or timm. Traps: "mat1 and mat2 must have the same dtype", "'list' object has no
attribute 'dim'".
"""

import copy
import doctest
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from tests.policy.test_fuzz import SECONDS, obscure
from tests.policy.test_public_api import OBJECTS
from tests.time_limit import time_limit
from torch import Tensor

import jepakit

# Modules and models that the user brings: their own errors say more.
EXCEPT = {
    "EMATeacher.forward": "calls the user's model",
    "assert_teacher_contract": "calls the user's model",
    "assert_encoder_contract": "features of NaN violate the contract, which it says",
}

pytestmark = [pytest.mark.slow, pytest.mark.no_hook, pytest.mark.filterwarnings("ignore")]


class Call(NamedTuple):
    """A public function or method, and the arguments of its first call in an example."""

    function: Callable[..., Any]
    arguments: dict[str, Any]


def recorder(calls: dict[str, Call], name: str, function: Callable[..., Any]) -> Any:
    """`function`, which keeps the arguments of its first call with a tensor."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def recorded(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        if name not in calls and any(isinstance(value, Tensor) for value in given.values()):
            calls[name] = Call(function, copy.deepcopy(dict(given)))
        return function(*args, **kwargs)

    return recorded


@pytest.fixture(scope="module")
def calls() -> dict[str, Call]:
    """First calls with tensors in all docstrings' examples, by name."""
    calls: dict[str, Call] = {}
    names = [module.name for module in pkgutil.walk_packages(jepakit.__path__, "jepakit.")]
    modules = [jepakit, *(importlib.import_module(n) for n in names if "__main__" not in n)]
    with pytest.MonkeyPatch.context() as patch:
        for path, thing in OBJECTS.items():
            name = path.rpartition(".")[2]
            if inspect.isclass(thing):
                for key, method in vars(thing).items():
                    if inspect.isfunction(method) and (key == "__call__" or key[0] != "_"):
                        patch.setattr(thing, key, recorder(calls, f"{name}.{key}", method))
            elif inspect.isfunction(thing):
                recorded = recorder(calls, name, thing)
                for module in modules:
                    if getattr(module, name, None) is thing:
                        patch.setattr(module, name, recorded)
        finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner(verbose=False)
        for module in modules:
            for test in finder.find(module):
                runner.run(test, out=lambda _: None)
    return calls


def changes(tensor: Tensor) -> Iterator[tuple[str, Any]]:
    """Tensors of another shape or dtype with nearly the same entries, and what is no tensor."""
    yield "one dimension more", tensor.unsqueeze(0)
    if tensor.dim():
        yield "one dimension less", tensor[0]
        yield "the first sample", tensor[:1]
        yield "without the last sample", tensor[:-1]
        yield "without the last feature", tensor[..., :-1]
        yield "the first feature", tensor[..., :1]
    if tensor.dim() > 1:
        yield "transposed", tensor.transpose(0, 1)
    for dtype in (torch.float64, torch.float16, torch.int64, torch.bool, torch.complex64):
        yield str(dtype), tensor.to(dtype)
    yield (
        "NaN",
        torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else -tensor.int(),
    )
    yield "a list", tensor.detach().tolist()
    yield "an array", tensor.detach().numpy()


def test_taken_or_refused_by_name(calls: dict[str, Call]) -> None:
    assert len(calls) > 60
    found = []
    for name, (function, arguments) in calls.items():
        if name in EXCEPT:
            continue
        tensors = [key for key, value in arguments.items() if isinstance(value, Tensor)]
        for key in tensors:
            for kind, value in changes(arguments[key]):
                torch.manual_seed(0)
                given = {**copy.deepcopy(arguments), key: value}
                try:
                    with time_limit(SECONDS):
                        function(**given)
                except Exception as error:
                    if text := obscure(error, {*arguments, "inputs", "images"}):
                        found.append(f"{name}: {key} = {kind}: {text}")
    assert not found, "\n".join(found)
