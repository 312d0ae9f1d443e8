"""Weights of levels: decay presets, softmax over inverse losses, learned weights."""

import copy
import itertools
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jepakit.losses import SoftOptimalWeights, UncertaintyWeights, decay_weights


@given(st.integers(2, 8), st.floats(0.01, 0.99))
def test_decay_falls_by_its_factor_and_sums_to_one(num_levels, decay) -> None:
    weights = decay_weights(num_levels, decay)
    assert math.fsum(weights) == pytest.approx(1)
    for finer, coarser in itertools.pairwise(weights):
        assert coarser == pytest.approx(decay * finer)
    assert decay_weights(num_levels, decay, heaviest="coarse") == weights[::-1]


@pytest.mark.no_hook
@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: decay_weights(1), ValueError, "num_levels=1: must be at least 2"),
        (lambda: decay_weights(3, 0.0), ValueError, "decay_ratio=0: must lie in (0, 1)"),
        (lambda: decay_weights(3, 2.0), ValueError, "decay_ratio=2: must lie in (0, 1)"),
        (
            lambda: decay_weights(3, 1.0),
            ValueError,
            "decay_ratio=1: must lie in (0, 1)",
        ),
        (
            lambda: decay_weights(3, heaviest="top"),
            ValueError,
            "heaviest='top': must be one of 'fine', 'coarse'",
        ),
        (lambda: SoftOptimalWeights(0.0), ValueError, "temperature=0: must be above 0"),
        (
            lambda: SoftOptimalWeights(True),
            TypeError,
            "temperature=True: must be a number, got bool",
        ),
        (
            lambda: SoftOptimalWeights()(torch.ones(2, 2)),
            ValueError,
            "losses (2, 2): must be a vector, one for each level",
        ),
        (lambda: UncertaintyWeights(1), ValueError, "num_levels=1: must be at least 2"),
        (
            lambda: UncertaintyWeights(2, max_weight=1.0),
            ValueError,
            "max_weight=1: must be above 1",
        ),
        (
            lambda: UncertaintyWeights(2)(torch.ones(3)),
            ValueError,
            "losses (3,): must be a vector, one for each of 2 levels",
        ),
    ],
)
def test_errors(call, error, text) -> None:
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == text


LOSSES = st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=5)


@given(LOSSES, st.floats(0.01, 100))
def test_soft_weights_are_the_softmax_of_inverse_losses(values, temperature) -> None:
    losses = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    soft = SoftOptimalWeights(temperature)
    inverse = [1 / (value * temperature) for value in values]
    powers = [math.exp(score - max(inverse)) for score in inverse]
    weights = torch.tensor([power / sum(powers) for power in powers], dtype=torch.float64)
    torch.testing.assert_close(soft.weights(losses), weights)
    total = soft(losses)
    torch.testing.assert_close(total.detach(), (weights * losses.detach()).sum())
    # No gradient through the weights: else a large loss would be rewarded with a small weight.
    total.backward()
    torch.testing.assert_close(losses.grad, weights)


def test_soft_weights_without_anything_to_weigh() -> None:
    soft = SoftOptimalWeights()
    weights = soft.weights(torch.tensor([0.0, 0.3, 0.2]))
    assert weights[0] == 0 and weights.sum() == 1 and weights[2] > weights[1]
    assert not soft.weights(torch.zeros(3)).any()
    tiny = soft.weights(torch.tensor([1e-45, 1.0]))
    assert torch.isfinite(tiny).all()


def test_temperature_matters_and_repr_builds() -> None:
    losses = torch.tensor([0.5, 0.1])
    cold, warm = (SoftOptimalWeights(t).weights(losses) for t in (0.1, 100.0))
    assert cold[1] > 0.999 and abs(float(warm[0]) - 0.5) < 0.05
    soft = SoftOptimalWeights(0.3)
    for other in (eval(repr(soft)), copy.deepcopy(soft), pickle.loads(pickle.dumps(soft))):
        assert other == soft


def test_uncertainty_starts_as_the_mean() -> None:
    losses = torch.tensor([0.5, 2.0, 3.5], requires_grad=True)
    total = UncertaintyWeights(3)(losses)
    assert total.item() == pytest.approx(2.0)
    total.backward()
    torch.testing.assert_close(losses.grad, torch.full((3,), 1 / 3))


@given(LOSSES, st.integers(0, 2**32 - 1), st.floats(1.5, 100))
def test_uncertainty_is_its_formula(values, seed, max_weight) -> None:
    torch.manual_seed(seed)
    uncertainty = UncertaintyWeights(len(values), max_weight=max_weight)
    with torch.no_grad():
        uncertainty.raw.normal_(std=3)
    terms = []
    for value, raw in zip(values, uncertainty.raw.tolist(), strict=True):
        weight = max_weight ** (raw / (1 + abs(raw)))
        terms.append(weight * value - math.log(weight))
    total = uncertainty(torch.tensor(values))
    assert total.item() == pytest.approx(sum(terms) / len(terms), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("raw", [-1e4, -30.0, 0.0, 30.0, 1e4])
def test_uncertainty_is_bounded_with_a_live_gradient(raw) -> None:
    """Traps: weights without a price or a bound; a clamp that is dead outside."""
    uncertainty = UncertaintyWeights(2, max_weight=5.0)
    with torch.no_grad():
        uncertainty.raw.fill_(raw)
    weights = uncertainty.weights
    assert (weights >= 0.2 * (1 - 1e-6)).all() and (weights <= 5 * (1 + 1e-6)).all()
    uncertainty(torch.tensor([1e-3, 1e3])).backward()
    gradient = uncertainty.raw.grad
    assert gradient[0] < 0 < gradient[1], "towards more weight for the small loss, wherever it is"


def test_uncertainty_learns_one_over_the_loss() -> None:
    """Trap: adaptive weights that no optimiser sees. Within the bound they find their best."""
    uncertainty = UncertaintyWeights(4, max_weight=10.0)
    parameters = list(uncertainty.parameters())
    assert [tuple(parameter.shape) for parameter in parameters] == [(4,)]
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    losses = torch.tensor([0.25, 1.0, 4.0, 1e-6])
    for _ in range(600):
        optimizer.zero_grad()
        uncertainty(losses).backward()
        optimizer.step()
    weights = uncertainty.weights
    torch.testing.assert_close(weights[:3], 1 / losses[:3], rtol=0.05, atol=0.0)
    assert 7 < weights[3] < 10


def test_uncertainty_copies_and_state(tmp_path) -> None:
    uncertainty = UncertaintyWeights(3, max_weight=4.0)
    with torch.no_grad():
        uncertainty.raw.normal_()
    torch.save(uncertainty.state_dict(), tmp_path / "weights.pt")
    loaded = UncertaintyWeights(3, max_weight=4.0)
    loaded.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    for other in (loaded, copy.deepcopy(uncertainty), pickle.loads(pickle.dumps(uncertainty))):
        assert torch.equal(other.weights, uncertainty.weights)
    other = UncertaintyWeights(3, max_weight=8.0)
    other.load_state_dict(uncertainty.state_dict())
    assert not torch.allclose(other.weights, uncertainty.weights)
    assert repr(uncertainty) == "UncertaintyWeights(3, max_weight=4.0)"


def test_weights_to_look_at_have_no_gradient():
    assert not UncertaintyWeights(2).weights.requires_grad
