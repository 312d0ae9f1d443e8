"""VICReg by hand, and what its terms do to features that collapse."""

import pytest
import torch

from jepakit.losses import covariance_loss, masked_mse, variance_loss, vicreg


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
    with pytest.raises(ValueError, match="at least one must be above 0"):
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
    # Equal samples cannot be told apart: by symmetry the gradient is 0, and not NaN.
    assert torch.equal(x.grad, torch.zeros_like(x))
    with pytest.raises(ValueError, match=r"eps=0\.0: must be above 0"):
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
