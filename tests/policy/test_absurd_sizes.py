"""Sizes by a slip of the keyboard are refused at once, not after minutes and all of the memory."""

import time

import pytest
from tests.policy.test_arguments import CASES
from tests.time_limit import time_limit

# One argument at a time becomes this; those of more than a few positions or blocks.
ABSURD = {"grid_size": 10**6, "depth": 10**9}
CALLS = [
    (name, argument)
    for name, (_, given) in CASES.items()
    for argument in ABSURD
    if argument in given
]


@pytest.mark.parametrize(("name", "argument"), CALLS)
def test_refused_within_a_second(name: str, argument: str) -> None:
    call, given = CASES[name]
    value = given[argument]
    absurd = (ABSURD[argument],) * len(value) if isinstance(value, tuple) else ABSURD[argument]
    began = time.process_time()
    with time_limit(5), pytest.raises(ValueError, match=rf"{argument}=.*: must"):
        call(**{**given, argument: absurd})
    assert time.process_time() - began < 1


def test_the_calls_cover_samplers_and_models() -> None:
    assert {"MultiBlockMask", "RandomMask", "MaskedPredictor", "TokenViT"} <= {n for n, _ in CALLS}
