"""A sum of named losses: what is configured takes effect, or raises."""

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from jepakit import constant, cosine, linear
from jepakit.losses import LossSum, UncertaintyWeights

NAMES = st.text("abc", min_size=1, max_size=3)


@given(
    weights=st.dictionaries(NAMES, st.floats(0, 10), min_size=1).filter(lambda w: any(w.values())),
    scheduled=st.booleans(),
    seed=st.integers(0, 2**31),
    reverse=st.booleans(),
)
def test_is_the_weighted_sum(
    weights: dict[str, float], scheduled: bool, seed: int, reverse: bool
) -> None:
    """Value and gradient, in whatever order the terms come."""
    random = torch.Generator().manual_seed(seed)
    leaves = {
        name: torch.randn((), generator=random, dtype=torch.float64, requires_grad=True)
        for name in (reversed(weights) if reverse else weights)
    }
    given_weights = {n: linear(0, 2 * w, steps=10) for n, w in weights.items()}
    total, parts = LossSum(given_weights if scheduled else weights)(
        {name: leaf**2 for name, leaf in leaves.items()}, step=5
    )
    expected = sum(w * leaves[name].item() ** 2 for name, w in weights.items())
    assert total.item() == pytest.approx(expected, rel=1e-12, abs=1e-300)
    total.backward()
    for name, leaf in leaves.items():
        gradient = 0.0 if leaf.grad is None else leaf.grad.item()
        assert gradient == pytest.approx(2 * weights[name] * leaf.item(), rel=1e-12, abs=1e-300)
        assert torch.equal(parts[name], leaf.detach() ** 2)
        assert not parts[name].requires_grad
    assert list(parts) == list(weights)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("weight", [0.0, linear(0.0, 1.0, steps=10)])
def test_a_weight_of_zero_leaves_the_term_out(weight: object, poison: float) -> None:
    """Trap: 0 * NaN is NaN, in value and in gradient."""
    x = torch.tensor(2.0, requires_grad=True)
    y = torch.tensor(poison, requires_grad=True)
    total, parts = LossSum({"good": 3.0, "bad": weight})({"good": x, "bad": y * x}, step=0)
    total.backward()
    assert total == 6 and x.grad == 3 and y.grad is None
    assert not parts["bad"].isfinite()


@pytest.mark.no_hook
def test_any_other_nan_is_seen_in_the_total() -> None:
    """Nothing is skipped for its value, and there is no host synchronisation."""
    terms = {"good": torch.tensor(1.0), "bad": torch.tensor(math.nan)}
    total, parts = LossSum({"good": 1.0, "bad": 1e-9})(terms)
    assert total.isnan() and parts["bad"].isnan() and parts["good"] == 1
    on_meta = {"good": torch.empty((), device="meta"), "bad": torch.empty((), device="meta")}
    assert LossSum({"good": 1.0, "bad": 0.0})(on_meta)[0].is_meta


def test_any_other_nan_raises_under_the_hook() -> None:
    terms = {"good": torch.tensor(1.0), "bad": torch.tensor(math.nan)}
    with pytest.raises(ValueError, match=r"terms\['bad'\]=nan: must be finite"):
        LossSum({"good": 1.0, "bad": 1e-9})(terms)


@pytest.mark.parametrize(
    ("terms", "text"),
    [
        ({"a": 1.0}, r"exactly \['a', 'b'\], but \['b'\] are missing and none have no weight"),
        ({"a": 1.0, "b": 1.0, "c": 1.0}, r"but none are missing and \['c'\] have no weight"),
        ({"a": 1.0, "B": 1.0}, r"but \['b'\] are missing and \['B'\] have no weight"),
        ({}, r"\['a', 'b'\] are missing"),
    ],
)
def test_terms_and_weights_must_be_the_same(terms: dict[str, float], text: str) -> None:
    """Trap: a misspelt term that silently trains nothing; a weight of 0 is no exception."""
    with pytest.raises(ValueError, match=text):
        LossSum({"a": 1.0, "b": 0.0})({name: torch.tensor(v) for name, v in terms.items()})


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ({}, "must hold a term"),
        ({"a": -1.0}, r"weights\['a'\]=-1: must be at least 0"),
        ({"a": math.nan}, r"weights\['a'\]=nan: must be finite"),
        ({"a": 0.0, "b": 0}, "and not all be 0"),
    ],
)
def test_bad_weights(weights: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        LossSum(weights)


@pytest.mark.no_hook
@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ([("a", 1.0)], "must be a mapping from names to weights, got list"),
        ({"a": "1"}, r"weights\['a'\]='1': must be a number, got str"),
        ({"a": True}, r"weights\['a'\]=True: must be a number, got bool"),
        ({"a": UncertaintyWeights(2)}, "apply a learned weight to the term"),
    ],
)
def test_weights_of_a_wrong_type(weights: object, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        LossSum(weights)


def test_schedules_are_checked_at_their_step() -> None:
    one = torch.tensor(1.0)
    with pytest.raises(ValueError, match=r"step=None: must be given, as weights\['a'\]"):
        LossSum({"a": constant(1.0)})({"a": one})
    with pytest.raises(ValueError, match=r"weights\['a'\]\(9\)=-1: must be at least 0"):
        LossSum({"a": constant(-1.0)})({"a": one}, step=9)
    with pytest.raises(ValueError, match="step=0: all weights are 0"):
        LossSum({"a": linear(0.0, 1.0, steps=9)})({"a": one}, step=0)


@pytest.mark.no_hook
def test_values_that_are_no_numbers() -> None:
    loss_sum = LossSum({"a": 1.0})
    with pytest.raises(TypeError, match=r"terms\['a'\]: must be a torch\.Tensor, got float"):
        loss_sum({"a": 1.0})
    with pytest.raises(TypeError, match=r"terms\['a'\]: must be floating point"):
        loss_sum({"a": torch.tensor(1)})
    with pytest.raises(ValueError, match=r"terms\['a'\] \(2,\): must be a single number"):
        loss_sum({"a": torch.ones(2)})
    with pytest.raises(TypeError, match="terms: must be a mapping"):
        loss_sum([torch.tensor(1.0)])


def test_half_precision_are_added_in_float32() -> None:
    terms = {"a": torch.tensor(1.0, dtype=torch.bfloat16), "b": torch.tensor(2.0**-12)}
    total, parts = LossSum({"a": 1.0, "b": 1.0})(terms)
    assert total.dtype == torch.float32 and total == 1 + 2.0**-12
    assert parts["a"].dtype == torch.bfloat16


def test_weights_come_from_configuration_files_and_numpy() -> None:
    """Stored as plain numbers, which `repr` shows."""
    configured = OmegaConf.create({"a": 1, "b": 0.5})
    for weights in (configured, {"a": np.float32(1), "b": np.float64(0.5)}):
        loss_sum = LossSum(weights)
        assert repr(loss_sum) == "LossSum(weights={'a': 1.0, 'b': 0.5})"
    scheduled = LossSum({"a": lambda step: np.float32(step)})
    assert scheduled.weights_at(np.int64(2)) == {"a": 2.0}
    assert type(scheduled.weights_at(2)["a"]) is float


def test_repr_copy_and_pickle() -> None:
    """Law 13; and what is done to the mapping afterwards has no effect."""
    weights = {"a": 1.0, "b": cosine(1.0, 0.0, steps=9)}
    loss_sum = LossSum(weights)
    weights["c"] = 1.0
    assert eval(repr(loss_sum), {"LossSum": LossSum, "cosine": cosine}) == loss_sum
    assert pickle.loads(pickle.dumps(loss_sum)) == loss_sum
    assert list(loss_sum.weights_at(0)) == ["a", "b"]


@pytest.mark.no_hook
def test_compiles_as_one_graph() -> None:
    torch.compiler.reset()
    loss_sum = LossSum({"a": 2.0, "b": 0.0, "c": linear(0.0, 1.0, steps=4)})

    def step(x: torch.Tensor) -> torch.Tensor:
        return loss_sum({"a": x.sum(), "b": x.mean(), "c": x.square().sum()}, step=2)[0]

    x = torch.randn(3)
    torch.testing.assert_close(torch.compile(step, fullgraph=True, backend="eager")(x), step(x))


@pytest.mark.no_hook
def test_compiles_again_for_another_step() -> None:
    """Trap: the second step is a symbolic int, of which a schedule makes a symbolic float."""
    torch.compiler.reset()
    loss_sum = LossSum({"a": linear(0.5, 1.0, steps=10)})

    def total(x: torch.Tensor, step: int) -> torch.Tensor:
        return loss_sum({"a": x.sum()}, step=step)[0]

    compiled, x = torch.compile(total, fullgraph=True, backend="eager"), torch.randn(3)
    for step in range(3):
        torch.testing.assert_close(compiled(x, step), total(x, step))
