"""VICReg, Barlow Twins and KoLeo by hand, and their gradients on features that collapse."""

import math

import pytest
import torch

from jepakit.losses import (
    barlow,
    covariance_loss,
    koleo,
    masked_mse,
    regularizers,
    variance_loss,
    vicreg,
)

# VICReg


def test_weights_are_25_25_1_and_each_matters() -> None:
    """Trap: the covariance divided twice, d - 1 times too weak."""
    torch.manual_seed(0)
    x, y = 0.5 * torch.randn(20, 6), 0.5 * torch.randn(20, 6)
    invariance = masked_mse(x, y, torch.ones(20, dtype=torch.bool))
    variance = (variance_loss(x) + variance_loss(y)) / 2
    covariance = covariance_loss(x) + covariance_loss(y)
    torch.testing.assert_close(vicreg(x, y), 25 * invariance + 25 * variance + covariance)
    weights = {"invariance_weight": 0, "variance_weight": 0, "covariance_weight": 0}
    for name, term in zip(weights, (invariance, variance, covariance), strict=True):
        torch.testing.assert_close(vicreg(x, y, **(weights | {name: 2.0})), 2 * term)
    with pytest.raises(ValueError, match="must not all be 0"):
        vicreg(x, y, **weights)
    with pytest.raises(ValueError, match=r"covariance_weight=-1: must be at least 0"):
        vicreg(x, y, covariance_weight=-1)


def test_the_target_of_both_views_can_be_set() -> None:
    """Law 12. Trap: arguments that are taken and not handed on, to one of the views at least."""
    x, y = torch.randn(20, 6), torch.randn(20, 6)
    target = {"target_std": 3.0, "eps": 0.5}
    weights = {"invariance_weight": 0, "variance_weight": 2, "covariance_weight": 0}
    expected = variance_loss(x, **target) + variance_loss(y, **target)
    torch.testing.assert_close(vicreg(x, y, **weights, **target), expected)


def test_covariance_of_one_repeated_dimension() -> None:
    """d dimensions that all equal one of variance s: d (d - 1) s^2 / d."""
    x = torch.tensor([1.0, -1.0, 3.0, -3.0])
    s = x.var().item()
    for d in (2, 5, 16):
        loss = covariance_loss(x.unsqueeze(1).expand(4, d))
        torch.testing.assert_close(loss.item(), (d - 1) * s**2, rtol=1e-6, atol=0)


def test_std_and_eps_are_where_they_should_be() -> None:
    """Trap: eps of 1e-8 inside the root, whose gradient explodes for constant dimensions."""
    x = torch.full((8, 3), 0.3, requires_grad=True)
    value = variance_loss(x, target_std=2.0, eps=0.25)
    assert value.item() == pytest.approx(2.0 - 0.5)
    value.backward()
    # No function of the samples separates equal ones: by symmetry the gradient is 0, and not NaN.
    assert torch.equal(x.grad, torch.zeros_like(x))
    with pytest.raises(ValueError, match="eps=0: must be above 0"):
        variance_loss(x, eps=0.0)


def test_a_difference_of_a_millionth_is_driven_apart() -> None:
    """At collapse the hinge pulls at its full slope."""
    x = 5 + 1e-6 * torch.randn(16, 4, dtype=torch.float64)
    x.requires_grad_()
    variance_loss(x).backward()
    with torch.no_grad():
        after = x - 10 * x.grad
    assert (after.std(dim=0) > 2 * x.std(dim=0)).all()


def test_shapes_of_the_views_must_agree() -> None:
    with pytest.raises((ValueError, TypeError)):
        vicreg(torch.randn(4, 3), torch.randn(1, 3))


# KoLeo and Barlow Twins


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def collapsed(kind: str, noise: float) -> torch.Tensor:
    base = torch.ones(32, 4, dtype=torch.float64)
    if kind == "rank one":
        base = base * torch.linspace(1, 2, 32, dtype=torch.float64)[:, None]
    return base + noise * torch.randn(32, 4, dtype=torch.float64, generator=seeded())


@pytest.mark.parametrize("kind", ["constant", "rank one"])
def test_koleo_drives_collapsed_features_apart(kind: str) -> None:
    """Law 11. One direction: no gradient, by symmetry. Next to it: one over the distance."""
    exact = collapsed(kind, 0.0).requires_grad_()
    koleo(exact).backward()
    assert exact.grad.isfinite().all()
    assert exact.grad.abs().max() < 1e-6
    sizes = []
    for noise in (1e-2, 1e-4):
        x = collapsed(kind, noise).requires_grad_()
        koleo(x).backward()
        sizes.append(x.grad.norm().item())
        after = (x - 1e-3 * noise**2 * x.grad).detach()
        assert koleo(after) < koleo(x)
    assert sizes[1] == pytest.approx(100 * sizes[0], rel=0.3)


def test_koleo_does_not_see_length() -> None:
    x = torch.randn(10, 3, generator=seeded())
    torch.testing.assert_close(koleo(x * torch.rand(10, 1).add(0.1)), koleo(x))


def test_koleo_tells_close_neighbours_apart_in_float32() -> None:
    """Trap: by cosines, samples 1e-4 apart all have a cosine of exactly 1, and any is nearest."""
    angles = torch.linspace(0, 1, 50, dtype=torch.float64).square() * 0.02 + 1
    x = torch.stack([angles.cos(), angles.sin()], dim=1)
    torch.testing.assert_close(koleo(x.float()).double(), koleo(x), rtol=1e-3, atol=0)


def test_koleo_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(11, 3, generator=seeded())
    expected = koleo(x)
    monkeypatch.setattr(regularizers, "_NEIGHBOUR_CHUNK", 4)
    assert torch.equal(koleo(x), expected)


def test_koleo_eps_is_the_least_distance() -> None:
    x = torch.ones(4, 3)
    assert koleo(x, eps=1e-3).item() == pytest.approx(-math.log(1e-3))
    with pytest.raises(ValueError, match="eps=0: must be above 0"):
        koleo(x, eps=0.0)


def test_barlow_of_collapsed_features() -> None:
    """Constant: d, and no gradient by symmetry. Next to it the gradient drives samples apart."""
    exact = collapsed("constant", 0.0).requires_grad_()
    value = barlow(exact, exact)
    value.backward()
    assert value.item() == pytest.approx(4)
    assert not exact.grad.abs().max() > 1e-9
    x = collapsed("constant", 1e-4).requires_grad_()
    barlow(x, x).backward()
    after = (x - 1e-4 * x.grad).detach()
    assert (after.std(dim=0) > 1.2 * x.detach().std(dim=0)).all()


def test_barlow_rank_one_is_penalised_off_the_diagonal() -> None:
    """Dimensions that all say the same: d (d - 1) correlations of one."""
    x = torch.randn(50, 1, generator=seeded()).expand(50, 6)
    assert barlow(x, x).item() == pytest.approx(0.0051 * 30, rel=1e-3)
    assert barlow(x, x, off_diagonal_weight=1.0).item() == pytest.approx(30, rel=1e-3)
    assert barlow(x, x, eps=1.0) > barlow(x, x)
    with pytest.raises(ValueError, match="off_diagonal_weight=-1: must be at least 0"):
        barlow(x, x, off_diagonal_weight=-1)
