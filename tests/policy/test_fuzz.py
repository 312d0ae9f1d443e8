"""Every public callable, with one argument at a time replaced by a value that no one means.

The call is taken, or refused by an error of jepakit's own that names an argument. Traps: "only one
element tensors can be converted to Python scalars", an overflow in a layer of torch, a loop that
does not end.
"""

import traceback
from collections.abc import Collection
from typing import Any

import numpy as np
import pytest
import torch
from tests.policy.test_arguments import CASES
from tests.time_limit import TookTooLong, time_limit

VALUES: dict[str, Any] = {
    "None": None, "a text": "abc", "bytes": b"1", "-1": -1, "0": 0, "0.5": 0.5, "2.5": 2.5,
    "1e-300": 1e-300, "NaN": float("nan"), "infinity": float("inf"), "-infinity": -float("inf"),
    "10**30": 10**30, "1j": 1j, "True": True, "()": (), "[]": [], "{}": {}, "a set": {1},
    "an object": object(), "a class": int, "a tensor": torch.tensor(3.0),
    "a matrix": np.zeros((2, 2)),
    "texts": ("a", "b"), "NaNs": (float("nan"),) * 2, "with None": (1, None), "negative": (-3, -2),
    "nested": ((1, 2), (3,)), "1 to 39": tuple(range(1, 40)),
}  # fmt: skip
SECONDS = 10
# Calls whose refusal is the purpose of the function, or whose size is the user's wish.
CONTRACT = "assert_predictor_contract"
EXCEPT = {
    (CONTRACT, "tolerance", "*"): "the contract is violated at such a tolerance",
    (CONTRACT, "seed", "-1"): "of this tiny predictor, one in a hundred seems blind to positions",
    ("TokenSet.full", "batch_shape", "1 to 39"): "too many elements for torch, which says so",
}

pytestmark = [pytest.mark.slow, pytest.mark.no_hook]


def obscure(error: Exception, names: Collection[str]) -> str:
    """Empty for an error that a user can act on."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    if "/src/jepakit/" not in last.filename or not isinstance(error, TypeError | ValueError):
        return f"{type(error).__name__} of {last.filename}:{last.lineno}: {error}"
    return "" if any(name in str(error) for name in names) else f"names no argument: {error}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_taken_or_refused_by_name(name: str) -> None:
    call, given = CASES[name]
    found = []
    for argument in given:
        for kind, value in VALUES.items():
            if {(name, argument, kind), (name, argument, "*")} & EXCEPT.keys():
                continue
            torch.manual_seed(0)
            try:
                with time_limit(SECONDS):
                    call(**{**given, argument: value})
            except TookTooLong:
                found.append(f"{argument}={kind}: runs for more than {SECONDS} s")
            except Exception as error:
                if text := obscure(error, {*given, "grid_size"}):
                    found.append(f"{argument}={kind}: {text}")
    assert not found, "\n".join(found)


def test_what_is_obscure_is_found() -> None:
    """This test can fail: an error of torch's own, and one of jepakit's without a name."""

    def raised(code: str) -> Exception:
        try:
            exec(compile(code, "/src/jepakit/none.py", "exec"), {"torch": torch})
        except Exception as error:
            return error
        raise AssertionError

    assert "RuntimeError" in obscure(raised("torch.ones(2) @ torch.ones(3)"), ["dim"])
    assert "names no argument" in obscure(raised("raise ValueError('must be 3')"), ["dim"])
    assert not obscure(raised("raise ValueError('dim=2: must be 3')"), ["dim"])
