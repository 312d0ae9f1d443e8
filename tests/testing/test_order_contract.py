"""`assert_order_contract` passes `TemporalPool` and fails pools that are blind to order."""

import pytest
import torch
from tests.testing.violations import violates
from torch import Tensor, nn

from jepakit.nn import AttentionPool, TemporalPool
from jepakit.testing import assert_order_contract
from jepakit.testing._violation import Law

DIM = 8
MODES = ["attention", "softmax", "last"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(3))
def test_the_pool_passes_and_is_left_as_it_was(mode: str, seed: int) -> None:
    torch.manual_seed(seed)
    pool = TemporalPool(DIM, 9, mode=mode).train()
    before = {name: tensor.clone() for name, tensor in pool.state_dict().items()}
    assert_order_contract(pool, DIM, seed=seed)
    assert pool.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in pool.state_dict().items())


def test_a_pool_without_room_for_padding_passes() -> None:
    assert_order_contract(TemporalPool(DIM, 5), DIM, max_steps=5)


class Own(nn.Module):
    """Weights that grow with the number of the step; the broken ones change a method."""

    def weights(self, x: Tensor, valid: Tensor) -> Tensor:
        return valid * torch.arange(1.0, valid.shape[1] + 1)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        weights = self.weights(x, valid)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-6)
        return (weights[..., None] * x.masked_fill(~valid[..., None], 0)).sum(dim=1)


def test_an_own_pool_passes() -> None:
    assert_order_contract(Own(), DIM)


class Mean(Own):
    """Trap: mean over objects, then mean over time: A-B-C equals C-B-A."""

    def weights(self, x: Tensor, valid: Tensor) -> Tensor:
        return valid.float()


class NearlyBlind(Own):
    """As one that was tried: 4e-5 of 0.57."""

    def weights(self, x: Tensor, valid: Tensor) -> Tensor:
        return valid * (1 + 1e-4 * torch.arange(1.0, valid.shape[1] + 1))


class PositionsOnly(Own):
    """Positions that are added to the features are averaged with them."""

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        number = torch.arange(valid.shape[1])[:, None] * torch.linspace(-1, 1, DIM)
        weights = valid / valid.sum(dim=1, keepdim=True).clamp(min=1)
        return (weights[..., None] * (x.masked_fill(~valid[..., None], 0) + number)).sum(dim=1)


class OrderOfWholeSequencesOnly(Own):
    """It knows the order of the padded length alone: the middle of 5 steps is the same."""

    def weights(self, x: Tensor, valid: Tensor) -> Tensor:
        return valid * (1.0 + (torch.arange(valid.shape[1]) > 3))


class CountsFromTheEndOfTheBatch(Own):
    """Trap: weights for one fixed length: padding moves every step."""

    def weights(self, x: Tensor, valid: Tensor) -> Tensor:
        return valid * torch.arange(1.0, valid.shape[1] + 1).flip(0)


class LastOfTheBatch(Own):
    """Trap: `x[:, -1]` is padding."""

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        if valid.shape[1] == 0:
            return x.new_zeros(len(x), DIM) + x.sum(dim=1)
        return x[:, -1] * valid.any(dim=1, keepdim=True)


class WithoutAMask(Own):
    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        weights = torch.arange(1.0, valid.shape[1] + 1)
        return (weights[:, None] * x).sum(dim=1) * valid.any(dim=1, keepdim=True)


class NanWithoutSteps(Own):
    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        weights = self.weights(x, valid)
        weights = weights / weights.sum(dim=1, keepdim=True)
        return (weights[..., None] * x.masked_fill(~valid[..., None], 0)).sum(dim=1)


BROKEN = [
    (
        Mean,
        Law.ORDER,
        r"reversing sequences of 2 steps moves .* must be at least 1 %",
    ),
    (NearlyBlind, Law.ORDER, r"reversing sequences of 2 steps moves the output by .*e-0"),
    (PositionsOnly, Law.ORDER, "reversing sequences of 2 steps"),
    (OrderOfWholeSequencesOnly, Law.ORDER, "reversing sequences of 2 steps"),
    (CountsFromTheEndOfTheBatch, Law.ORDER, "with more padding at the end"),
    (LastOfTheBatch, Law.PADDING, "features at padding changed the output"),
    (WithoutAMask, Law.PADDING, "features at padding changed the output"),
    (NanWithoutSteps, Law.PADDING, "with one sequence without a step, the output is nan"),
]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("broken", "law", "text"), BROKEN, ids=[case[0].__name__ for case in BROKEN]
)
def test_broken_pools_fail(broken: type[Own], law: Law, text: str, seed: int) -> None:
    with violates(law, text):
        assert_order_contract(broken(), DIM, seed=seed)


def test_the_error_reports_the_size_of_the_difference() -> None:
    """By value and as a fraction, for a mean and for the attention pool of sets."""
    with violates(Law.ORDER, r"moves the output by [\d.e-]+ of [\d.]+ \([\d.e-]+\)"):
        assert_order_contract(NearlyBlind(), DIM)
    with violates(Law.ORDER, "of 2 steps"):
        assert_order_contract(AttentionPool(DIM), DIM)


def test_positions_alone_start_nearly_blind() -> None:
    """Why `TemporalPool` has scores of its own. Trap: small positions on the features."""
    pool = TemporalPool(DIM, 8)
    with torch.no_grad():
        pool.scores.zero_()
        pool.positions.mul_(0.02)
    with violates(Law.ORDER, "must be at least 1 %"):
        assert_order_contract(pool, DIM)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"max_steps": 2}, "max_steps=2: must be at least 3"),
        ({"min_change": 0.0}, r"min_change=0: must lie in \(0, 1\]"),
        ({"batch_size": 1}, "batch_size=1: must be at least 2"),
    ],
)
def test_bad_arguments(arguments: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        assert_order_contract(Own(), DIM, **arguments)


def test_sequences_longer_than_the_pool_takes_are_refused() -> None:
    with pytest.raises(ValueError, match="max_steps=5: must be at most the pool's max_len=4"):
        assert_order_contract(TemporalPool(DIM, max_len=4), DIM)
