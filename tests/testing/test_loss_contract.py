"""`assert_loss_contract` passes the masked losses and fails losses with known errors."""

from typing import Any

import pytest
import torch
from tests.testing.violations import violates
from torch import Tensor

from jepakit.losses import masked_cosine, masked_huber, masked_l1, masked_mse, masked_smooth_l1
from jepakit.testing import assert_loss_contract
from jepakit.testing._violation import Law

ALL = ("mean", "sum", "sample", "none")


@pytest.mark.parametrize(
    "loss", [masked_mse, masked_l1, masked_smooth_l1, masked_huber, masked_cosine]
)
@pytest.mark.parametrize("dim", [2, 7])
def test_jepakits_losses_pass(loss, dim):
    assert_loss_contract(loss, reductions=ALL, dim=dim, seed=dim)


def squares(pred: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Elementwise, 0 where not valid; shapes refused."""
    if pred.shape != target.shape or valid.shape != pred.shape[:-1]:
        raise ValueError("shapes")
    gap = torch.where(valid.unsqueeze(-1), pred - target, 0)
    return gap.square()


def own(pred: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    values = squares(pred, target, valid).mean(dim=-1)
    return values.sum() / valid.sum().clamp(min=1)


def test_a_users_own_loss_passes():
    assert_loss_contract(own, reductions=("mean",))


def test_a_distance_grows_with_the_width():
    def distance(pred: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        return (squares(pred, target, valid).sum(-1)[valid] + 1e-12).sqrt().sum() / max(
            1, int(valid.sum())
        )

    assert_loss_contract(distance, reductions=("mean",), grows_with_dim=True)
    with violates(Law.MEAN, "features repeated twice, of width 16 instead of 8: 5"):
        assert_loss_contract(distance, reductions=("mean",))


def averaged_twice(pred, target, valid):
    values = squares(pred, target, valid).mean(dim=-1)
    return (values.sum(-1) / valid.sum(-1).clamp(min=1)).mean()


def over_the_padding_too(pred, target, valid):
    return squares(pred, target, valid).mean()


def ignores_validity(pred, target, valid):
    squares(pred, target, valid)
    return (pred - target).square().mean()


def elements_over_positions(pred, target, valid):
    return squares(pred, target, valid).sum() / valid.sum().clamp(min=1)


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (averaged_twice, "the loss must equal that of a loop over the valid tokens"),
        (over_the_padding_too, "the loss must equal that of a loop over the valid tokens"),
        (ignores_validity, "the loss must equal that of a loop over the valid tokens"),
        (elements_over_positions, "features repeated twice, of width 16"),
    ],
)
def test_one_mean(loss, text):
    """Traps: mask first, average, average again; dividing by positions where elements were summed
    (64 times too large at dim 64); a validity that is never used."""
    with violates(Law.MEAN, text):
        assert_loss_contract(loss, reductions=("mean",))


def times_the_mask(pred, target, valid):
    squares(pred, target, valid)
    values = (pred - target).square() * valid.unsqueeze(-1)
    return values.mean(-1).sum() / valid.sum().clamp(min=1)


def where_comes_late(pred, target, valid):
    """The value is right and the gradient is 0 * NaN."""
    squares(pred, target, valid)
    values = torch.where(valid.unsqueeze(-1), (pred - target).square(), 0)
    return values.mean(-1).sum() / valid.sum().clamp(min=1)


def nan_when_nothing_is_valid(pred, target, valid):
    return squares(pred, target, valid).mean(-1).sum() / valid.sum()


def leaks_a_little(pred, target, valid):
    """A regulariser over everything, padding included."""
    finite = torch.nan_to_num(pred, posinf=0.0).clamp(-1, 1)
    value = own(pred, target, valid)
    return value + 0 * value.detach() + (finite - finite.detach()).sum() * 1e-3


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (times_the_mask, "inf at padding of pred: a value is nan"),
        (where_comes_late, "gradient of pred with inf at padding of pred: a value is nan, at"),
        (nan_when_nothing_is_valid, "the loss without valid tokens must be 0, got nan"),
    ],
)
def test_padding(loss, text):
    """Traps: a NaN at padding reaches the gradient as 0 * NaN; nothing valid gives NaN."""
    with violates(Law.PADDING, text):
        assert_loss_contract(loss, reductions=("mean",))


def test_gradients_are_tested():
    with violates(Law.MEAN, "gradient of pred must equal that of a loop over the valid tokens"):
        assert_loss_contract(leaks_a_little, reductions=("mean",))


def without_a_graph(pred, target, valid):
    return own(pred, target, valid) if valid.any() else torch.zeros(())


def broadcasts(pred, target, valid):
    values = torch.where(valid.unsqueeze(-1), pred - target, 0).square().mean(-1)
    return values.sum() / valid.sum().clamp(min=1)


def no_scalar(pred, target, valid):
    return squares(pred, target, valid).mean(-1)


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (without_a_graph, "the mean carries no gradient"),
        (
            broadcasts,
            r"a wrong target .* \(3, 2, 5, 8\), \(3, 2, 5, 1\), .* must raise",
        ),
        (no_scalar, r"the mean must be a tensor of shape \(\), got \(1, 1, 1\)|got \(3, 2, 5\)"),
    ],
)
def test_the_interface(loss, text):
    """Traps: an all-masked batch returning a number without a graph; shapes that broadcast."""
    with violates(Law.INTERFACE, text):
        assert_loss_contract(loss, reductions=("mean",))


def zero(pred, target, valid):
    return 0 * own(pred, target, valid)


def of_pred_alone(pred, target, valid):
    squares(pred, target, valid)
    return own(pred, torch.zeros_like(pred), valid)


def of_target_alone(pred, target, valid):
    return own(pred.detach(), target, valid)


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (zero, "the loss of random pred and target is 0"),
        (of_pred_alone, "another target gives the same loss"),
        (of_target_alone, "the gradient of pred is zero everywhere"),
    ],
)
def test_pred_is_compared_with_target(loss, text):
    with violates(Law.COMPARES, text):
        assert_loss_contract(loss, reductions=("mean",))


def test_a_zero_loss_with_reductions():
    with violates(Law.COMPARES, "is 0"):
        assert_loss_contract(lambda p, t, v, *, reduction="mean": zero(p, t, v))


def reducing(**changes: Any) -> Any:
    """A loss with reductions, some of which are wrong."""

    def loss(pred, target, valid, *, reduction="mean"):
        values = squares(pred, target, valid)
        right = {
            "mean": own(pred, target, valid),
            "sum": values.sum(),
            "none": values,
            "sample": values.sum((1, 2, 3)) / (valid.sum((1, 2)).clamp(min=1) * pred.shape[-1]),
        }
        wrong = {name: change(values, pred, valid) for name, change in changes.items()}
        return {**right, **wrong}[reduction]

    return loss


@pytest.mark.parametrize(
    ("name", "change", "law", "text"),
    [
        ("sum", lambda v, p, ok: v.mean(), Law.MEAN, "'sum' is .* must be 1 .* or 8"),
        ("none", lambda v, p, ok: v + 1.0, Law.PADDING, "'none' is 1 at padding"),
        ("none", lambda v, p, ok: 2 * v, Law.MEAN, "mean of reduction='none'"),
        ("none", lambda v, p, ok: v.sum(0), Law.INTERFACE, "'none' has shape"),
        (
            "sample",
            lambda v, p, ok: v.mean((1, 2, 3)),
            Law.MEAN,
            "must equal the loss of each sample alone",
        ),
    ],
)
def test_reductions(name, change, law, text):
    assert_loss_contract(reducing(), reductions=ALL)
    with violates(law, text):
        assert_loss_contract(reducing(**{name: change}), reductions=ALL)


def test_arguments():
    with pytest.raises(ValueError, match=r"^reductions=\('sum',\): must hold 'mean'"):
        assert_loss_contract(masked_mse, reductions=("sum",))
    with pytest.raises(ValueError, match=r"^reductions='median': must be one of"):
        assert_loss_contract(masked_mse, reductions=("mean", "median"))
    with pytest.raises(ValueError, match=r"^dim=1: must be at least 2"):
        assert_loss_contract(masked_mse, dim=1)
