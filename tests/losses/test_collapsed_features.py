"""Law 11: the gradient of every regulariser drives collapsed features apart.

Features that are equal to the last bit get equal gradients from any function that treats samples
alike, so no loss can tell them apart. The cases here carry a noise of 5e-4, which a network's
inputs always leave; how each loss behaves at exact symmetry is tested beside it.
"""

import pytest
import torch
from torch import Tensor

from jepakit.diagnostics import CollapseMonitor, effective_rank
from jepakit.losses import barlow, koleo, sigreg, variance_loss, vicreg

ROWS, DIM, NOISE = 64, 8, 5e-4
HALF = torch.arange(DIM) < DIM // 2


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def constant() -> Tensor:
    return 0.7 + NOISE * draw(0, ROWS, DIM)


def rank_one() -> Tensor:
    return draw(1, ROWS, 1) * draw(2, DIM) + NOISE * draw(0, ROWS, DIM)


def half_dead() -> Tensor:
    return draw(1, ROWS, DIM) * HALF + NOISE * draw(0, ROWS, DIM)


def shrunken() -> Tensor:
    return 0.05 * draw(1, ROWS, DIM)


def total_std(x: Tensor) -> float:
    return x.std(dim=0).norm().item()


def std_off_the_line(x: Tensor) -> float:
    """Of what is not along the direction of the largest variance."""
    values = torch.linalg.svdvals(x - x.mean(dim=0))
    return values[1:].norm().item() / (len(x) - 1) ** 0.5


def std_of_dead(x: Tensor) -> float:
    return x[:, ~HALF].std(dim=0).norm().item()


CASES = {
    "constant": (constant, total_std),
    "rank one": (rank_one, std_off_the_line),
    "half dead": (half_dead, std_of_dead),
    "shrunken": (shrunken, total_std),
}
LOSSES = {
    "vicreg": lambda x: vicreg(x, x),
    "variance_loss": variance_loss,
    "sigreg": lambda x: sigreg(x, num_slices=64, generator=torch.Generator().manual_seed(3)),
    "barlow": lambda x: barlow(x, x),
    "koleo": koleo,
}
# sigreg first takes samples to 0 together; vicreg is slow to leave a line, since the gradient of
# its covariance vanishes with the distance from it.
STEPS = {"sigreg": 250, "vicreg": 100}
# What a loss cannot see, by its definition.
BLIND = {
    ("variance_loss", "rank one"): "every dimension may vary on one line",
    ("koleo", "shrunken"): "it compares directions, not lengths",
    ("barlow", "shrunken"): "correlations see no length, until a variance is near eps",
}


def descend(name: str, x: Tensor, steps: int) -> Tensor:
    """Plain steps along the gradient, each as long as a hundredth of a unit for each sample."""
    for _ in range(steps):
        x = x.detach().requires_grad_()
        LOSSES[name](x).backward()
        assert x.grad.isfinite().all()
        x = x - 0.01 * ROWS**0.5 * x.grad / x.grad.norm().clamp(min=1e-12)
    return x.detach()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", LOSSES)
def test_gradient_steps_separate_the_samples(name: str, case: str) -> None:
    features, spread = CASES[case]
    before = features()
    after = descend(name, before, STEPS.get(name, 20))
    if (name, case) in BLIND:
        assert spread(after) < 1.5 * spread(before)
    else:
        assert spread(after) > 1.5 * spread(before)
        assert LOSSES[name](after) < LOSSES[name](before)


@pytest.mark.parametrize("name", ["vicreg", "sigreg"])
@pytest.mark.parametrize("case", ["constant", "rank one", "half dead"])
def test_what_the_monitor_reports_is_mended(name: str, case: str) -> None:
    """The two sides of law 11 agree: features that alarm no longer do after the regulariser."""
    monitor = CollapseMonitor(action="record", patience=1)
    before = CASES[case][0]()
    assert monitor.update(before - (0 if case != "half dead" else before * ~HALF)) is not None
    after = descend(name, before, steps=150)
    assert CollapseMonitor(action="record", patience=1).update(after) is None
    assert effective_rank(after) > effective_rank(before) + 0.1 or case != "rank one"
