"""Schedules: exact ends, clamped, never past an end, and a repr that builds them."""

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jepakit.schedules import constant, cosine, linear, warmup_cosine

EXAMPLES = [
    constant(0.996),
    linear(0.996, 1.0, steps=100),
    cosine(1.0, 0.0, steps=7),
    warmup_cosine(1e-3, 1e-5, warmup_steps=10, steps=100, start=1e-6),
    warmup_cosine(1e-3, warmup_steps=0, steps=5),
]
values = st.floats(-10, 10)


@pytest.mark.parametrize("schedule", [linear, cosine])
@given(start=values, end=values, steps=st.integers(0, 50), step=st.integers(-100, 100))
@example(start=0.03, end=0.3, steps=10, step=10)  # 0.03 + (0.3 - 0.03) > 0.3
def test_ends_are_exact_and_bounds_hold(
    schedule: Any, start: float, end: float, steps: int, step: int
) -> None:
    """Rounding may not carry a momentum above 1. Trap: division by zero at 0 steps."""
    f = schedule(start, end, steps=steps)
    assert min(start, end) <= f(step) <= max(start, end)
    if step >= steps or steps == 0:
        assert f(step) == end
    elif step <= 0:
        assert f(step) == start
    assert (f(step + 1) - f(step)) * (end - start) >= 0


@given(step=st.integers(0, 40))
def test_linear_and_cosine_follow_their_formula(step: int) -> None:
    assert linear(0.5, 0.9, steps=40)(step) == pytest.approx(0.5 + 0.4 * step / 40)
    wave = 0.9 + 0.5 * (0.5 - 0.9) * (1 + math.cos(math.pi * step / 40))
    assert cosine(0.5, 0.9, steps=40)(step) == pytest.approx(wave)


@given(
    peak=values,
    end=values,
    start=values,
    warmup_steps=st.integers(1, 20),
    rest=st.integers(0, 20),
    step=st.integers(-5, 60),
)
def test_warmup_cosine_is_its_two_parts(
    peak: float, end: float, start: float, warmup_steps: int, rest: int, step: int
) -> None:
    f = warmup_cosine(peak, end, warmup_steps=warmup_steps, steps=warmup_steps + rest, start=start)
    if step < warmup_steps:
        assert f(step) == linear(start, peak, steps=warmup_steps)(step)
    else:
        assert f(step) == cosine(peak, end, steps=rest)(step - warmup_steps)


@pytest.mark.parametrize("step", [-3, 0, 1, 10**9])
def test_no_steps_at_all_gives_the_end(step: int) -> None:
    """Trap: momentum schedule divided by zero at 0 steps."""
    assert linear(0.9, 1.0, steps=0)(step) == 1.0
    assert cosine(0.9, 1.0, steps=0)(step) == 1.0
    assert warmup_cosine(0.9, 0.1, warmup_steps=0, steps=0)(step) == 0.1


def test_momentum_moves_every_step() -> None:
    """Trap: the schedule is advanced per epoch."""
    f = linear(0.996, 1.0, steps=1000)
    assert len({f(step) for step in range(1001)}) == 1001


@pytest.mark.parametrize("schedule", EXAMPLES, ids=repr)
def test_repr_pickle_and_copy_build_the_same(schedule: Any) -> None:
    """Law 13."""
    for twin in (
        eval(repr(schedule)),
        pickle.loads(pickle.dumps(schedule)),
        copy.deepcopy(schedule),
    ):
        assert twin == schedule
        assert hash(twin) == hash(schedule)
        assert [twin(step) for step in range(-1, 110)] == [schedule(s) for s in range(-1, 110)]


@pytest.mark.parametrize("schedule", EXAMPLES, ids=repr)
def test_schedules_are_pure(schedule: Any) -> None:
    """Trap: momentum reset on resume. Nothing is counted here, so there is nothing to reset."""
    steps = [5, 0, 99, 5, 3]
    assert [schedule(step) for step in steps] == [schedule(step) for step in steps]
    assert all(type(schedule(step)) is float for step in steps)
    with pytest.raises(AttributeError):
        schedule.steps = 3


@pytest.mark.parametrize(
    ("build", "arguments", "changes"),
    [
        (constant, {"value": 0.5}, {"value": 0.6}),
        (linear, {"start": 0.0, "end": 1.0, "steps": 10}, {"start": 0.1, "end": 0.9, "steps": 20}),
        (cosine, {"start": 0.0, "end": 1.0, "steps": 10}, {"start": 0.1, "end": 0.9, "steps": 20}),
        (
            warmup_cosine,
            {"peak": 1.0, "end": 0.1, "warmup_steps": 4, "steps": 20, "start": 0.2},
            {"peak": 2.0, "end": 0.0, "warmup_steps": 5, "steps": 10, "start": 0.0},
        ),
    ],
)
def test_every_argument_matters(build: Any, arguments: Any, changes: Any) -> None:
    """Law 12."""
    assert changes.keys() == arguments.keys()
    before = [build(**arguments)(step) for step in range(25)]
    for name, value in changes.items():
        assert [build(**(arguments | {name: value}))(step) for step in range(25)] != before, name


@pytest.mark.parametrize("schedule", EXAMPLES, ids=repr)
@pytest.mark.no_hook
def test_steps_are_integers(schedule: Any) -> None:
    assert schedule(np.int64(3)) == schedule(3)
    with pytest.raises(TypeError, match=r"step=0\.5: must be an int, got float"):
        schedule(0.5)


def test_arguments_are_stored_as_plain_numbers() -> None:
    """From configuration files and NumPy; `repr` shows what is stored."""
    assert repr(constant(np.float64(0.5))) == "constant(value=0.5)"
    schedule = linear(0, np.float64(0.5), steps=np.int64(10))
    assert repr(schedule) == "linear(start=0.0, end=0.5, steps=10)"
    assert repr(cosine(1, 0, steps=np.int32(7))) == "cosine(start=1.0, end=0.0, steps=7)"
    rate = warmup_cosine(1, warmup_steps=np.int64(2), steps=np.int64(4))
    assert eval(repr(rate)) == rate and type(rate.steps) is int


@pytest.mark.no_hook
@pytest.mark.parametrize(
    ("build", "error", "text"),
    [
        (lambda: linear(0.9, 1.0, steps=-1), ValueError, "steps=-1: must be at least 0"),
        (lambda: linear(0.9, 1.0, steps=2.5), TypeError, "steps=2.5: must be an int, got float"),
        (lambda: cosine(math.nan, 1.0, steps=1), ValueError, "start=nan: must be finite"),
        (lambda: cosine(0.0, math.inf, steps=1), ValueError, "end=inf: must be finite"),
        (lambda: constant("1"), TypeError, "value='1': must be a number, got str"),
        (
            lambda: warmup_cosine(math.inf, warmup_steps=1, steps=1),
            ValueError,
            "peak=inf: must be finite",
        ),
        (
            lambda: warmup_cosine(1.0, warmup_steps=-1, steps=1),
            ValueError,
            "warmup_steps=-1: must be at least 0",
        ),
        (
            lambda: warmup_cosine(1.0, warmup_steps=11, steps=10),
            ValueError,
            "warmup_steps=11: must be at most 10",
        ),
        (
            lambda: warmup_cosine(1.0, warmup_steps=0, steps=10, start=0.5),
            ValueError,
            "start=0.5: must be 0 with warmup_steps=0",
        ),
    ],
)
def test_bad_arguments_name_value_and_rule(build: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        build()
    assert text in str(caught.value)
