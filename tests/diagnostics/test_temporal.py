"""Straightness of paths, and actions read off pairs of features."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepakit.diagnostics import inverse_dynamics_r2, straightness


@given(seed=st.integers(0, 2**31), batch=st.integers(1, 4), steps=st.integers(3, 7))
def test_straightness_equals_a_loop(seed: int, batch: int, steps: int) -> None:
    """Over triples of valid steps. Trap: a velocity across a missing step."""
    torch.manual_seed(seed)
    features, valid = torch.randn(batch, steps, 4), torch.rand(batch, steps) < 0.8
    cosines = []
    for b in range(batch):
        for t in range(steps - 2):
            if valid[b, t] and valid[b, t + 1] and valid[b, t + 2]:
                x = features[b, t : t + 3].double()
                first, second = x[1] - x[0], x[2] - x[1]
                cosines.append(float(first @ second / first.norm() / second.norm()))
    poisoned = features.masked_fill(~valid[..., None], math.nan)
    if cosines:
        expected = sum(cosines) / len(cosines)
        assert float(straightness(poisoned, valid)) == pytest.approx(expected, abs=1e-6)
    else:
        with pytest.raises(ValueError, match="must be True for at least 1 rows"):
            straightness(poisoned, valid)


def test_straightness_of_known_paths() -> None:
    angle = math.pi / 2 * torch.arange(9.0)
    square = torch.stack([angle.cos(), angle.sin()], dim=-1)[None]
    assert float(straightness(square)) == pytest.approx(0, abs=1e-6)
    line = torch.arange(9.0).square().view(1, 9, 1) * torch.ones(3)  # at any speed
    assert float(straightness(line)) == pytest.approx(1)
    zigzag = torch.tensor([0.0, 1, 0, 1, 0]).view(1, 5, 1)
    assert float(straightness(zigzag)) == pytest.approx(-1)
    assert float(straightness(torch.zeros(2, 4, 3))) == 0  # no movement
    noise = torch.randn(64, 40, 64, generator=torch.Generator().manual_seed(0))
    assert float(straightness(noise)) == pytest.approx(-0.5, abs=0.02)


def path_of(actions: torch.Tensor) -> torch.Tensor:
    start = torch.zeros(len(actions), 1, actions.shape[2])
    return torch.cat([start, actions.cumsum(dim=1)], dim=1)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), noise=st.sampled_from([0.0, 0.3, 1.0]))
def test_inverse_dynamics_against_the_known_answer(seed: int, noise: float) -> None:
    """Features are the path in another basis; the difference of two says the action, up to
    `noise` in the actions that no feature holds: R2 = 1 / (1 + noise^2)."""
    torch.manual_seed(seed)
    actions = torch.randn(200, 9, 2)
    features = path_of(actions) @ torch.randn(2, 6)
    observed = actions + noise * torch.randn_like(actions)
    found = float(inverse_dynamics_r2(features, observed, ridge=1e-6))
    assert found == pytest.approx(1 / (1 + noise**2), abs=0.1)


def test_inverse_dynamics_scores_held_out_sequences() -> None:
    """Trap: a score on the rows that were fitted: many features explain any few actions."""
    torch.manual_seed(0)
    features, actions = torch.randn(12, 5, 64), torch.randn(12, 4, 1)
    assert float(inverse_dynamics_r2(features, actions, ridge=1e-6)) < 0.1


def test_inverse_dynamics_ignores_padding_and_scale() -> None:
    torch.manual_seed(0)
    actions, valid = torch.randn(64, 9, 2), torch.rand(64, 10) < 0.8
    features = path_of(actions)
    pairs = valid[:, :-1] & valid[:, 1:]
    poisoned = features.masked_fill(~valid[..., None], math.nan)
    gone = actions.masked_fill(~pairs[..., None], math.inf)
    found = float(inverse_dynamics_r2(poisoned, gone, valid))
    assert found == pytest.approx(float(inverse_dynamics_r2(features, actions, valid)), rel=1e-9)
    assert found > 0.95
    scaled = float(inverse_dynamics_r2(1000 * features + 5, 0.01 * actions, valid))
    assert scaled == pytest.approx(found, abs=1e-6)


def test_the_generator_chooses_what_is_held_out() -> None:
    torch.manual_seed(0)
    actions = torch.randn(20, 4, 1)
    features = path_of(actions) + 0.5 * torch.randn(20, 5, 1)

    def score(seed: int | None) -> float:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return float(inverse_dynamics_r2(features, actions, generator=generator))

    assert score(1) == score(1) and score(None) == score(None)
    assert len({score(seed) for seed in (None, 1, 2)}) == 3


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"actions": torch.zeros(8, 3, 1)}, "every dimension must vary among the held-out pairs"),
        ({"valid": torch.zeros(8, 4) > 0}, "no valid pair in fitted sequences"),
        ({"held_out": 1.0}, r"held_out=1: must lie in \(0, 1\)"),
        ({"ridge": 0.0}, "ridge=0: must be above 0"),
        ({"features": torch.full((8, 4, 2), math.nan)}, "must be finite"),
    ],
)
def test_bad_arguments(change: dict, text: str) -> None:
    given_inputs = {"features": torch.randn(8, 4, 2), "actions": torch.randn(8, 3, 1)}
    with pytest.raises(ValueError, match=text):
        inverse_dynamics_r2(**given_inputs | change)


@pytest.mark.no_hook
def test_wrong_shapes() -> None:
    with pytest.raises(ValueError, match=r"actions \(8, 4, 1\): must be \[8, 3, a\]"):
        inverse_dynamics_r2(torch.randn(8, 4, 2), torch.randn(8, 4, 1))
    with pytest.raises(ValueError, match="with t at least 3"):
        straightness(torch.randn(8, 2, 2))
    with pytest.raises(ValueError, match="nothing is broadcast"):
        straightness(torch.randn(8, 3, 2), torch.ones(3) > 0)
