"""`assert_set_contract` passes the pools of sets and fails modules with known errors."""

import pytest
import torch
from tests.testing.violations import violates
from torch import Tensor, nn
from torch.nn import functional as F

from jepakit.nn import AttentionPool, SetEncoder
from jepakit.testing import assert_set_contract
from jepakit.testing._violation import Law

DIM = 8


class Own(nn.Module):
    """A masked mean of transformed entries; the broken ones change one method of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)

    def mean(self, x: Tensor, valid: Tensor) -> Tensor:
        total = x.masked_fill(~valid[..., None], 0).sum(dim=1)
        return total / valid.sum(dim=1, keepdim=True).clamp(min=1)

    def finish(self, pooled: Tensor, valid: Tensor) -> Tensor:
        return self.second(pooled).masked_fill(~valid.any(dim=1, keepdim=True), 0)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        x = x.masked_fill(~valid[..., None], 0)
        return self.finish(self.mean(torch.tanh(self.first(x)), valid), valid)


class PerEntry(Own):
    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        x = torch.tanh(self.first(x.masked_fill(~valid[..., None], 0)))
        return (x + self.mean(x, valid)[:, None]).masked_fill(~valid[..., None], 0)


@pytest.mark.parametrize("seed", range(3))
def test_own_modules_pass(seed: int) -> None:
    assert_set_contract(Own(), DIM, seed=seed)
    assert_set_contract(PerEntry(), DIM, per_entry=True, seed=seed, batch_size=2, set_size=3 + seed)


@pytest.mark.parametrize("num_queries", [1, 3])
def test_the_pool_passes_and_is_left_as_it_was(num_queries: int) -> None:
    pool = AttentionPool(DIM, num_queries).train()
    before = {name: tensor.clone() for name, tensor in pool.state_dict().items()}
    assert_set_contract(pool, DIM)
    assert pool.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in pool.state_dict().items())


@pytest.mark.parametrize("depth", [1, 2])
def test_the_set_encoder_passes(depth: int) -> None:
    encoder = SetEncoder(5, DIM, depth)
    assert_set_contract(encoder, 5)
    assert_set_contract(encoder.encode_entries, 5, per_entry=True)


class MeanOverPadding(Own):
    def mean(self, x: Tensor, valid: Tensor) -> Tensor:
        return x.masked_fill(~valid[..., None], 0).mean(dim=1)


class PaddedKeysAttend(Own):
    """Zeros in place of padding, which still take a part of the softmax."""

    def mean(self, x: Tensor, valid: Tensor) -> Tensor:
        weights = x.sum(dim=-1, keepdim=True).softmax(dim=1)
        return (weights * x.masked_fill(~valid[..., None], 0)).sum(dim=1)


class TakesAPrefix(Own):
    """Trap: `valid` taken as a length, right only where padding stands at the end."""

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        lengths = valid.sum(dim=1, keepdim=True)
        return super().forward(x, torch.arange(valid.shape[1]) < lengths)


class PositionsOfSlots(Own):
    def mean(self, x: Tensor, valid: Tensor) -> Tensor:
        number = valid.cumsum(dim=1)[..., None]
        return super().mean(x * number, valid)


class UsesTheFirst(Own):
    def mean(self, x: Tensor, valid: Tensor) -> Tensor:
        first = valid & (valid.cumsum(dim=1) == 1)
        return super().mean(x, first)


class SeesItsBatchMates(Own):
    def finish(self, pooled: Tensor, valid: Tensor) -> Tensor:
        return super().finish(pooled + pooled.mean(dim=0), valid)


class LooksAtPadding(Own):
    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        return super().forward(x, valid) + 0.1 * (x.amax(dim=1) > 100) * valid.any(1, keepdim=True)


class NanWithoutEntries(Own):
    def mean(self, x: Tensor, valid: Tensor) -> Tensor:
        return x.masked_fill(~valid[..., None], 0).sum(dim=1) / valid.sum(dim=1, keepdim=True)

    def finish(self, pooled: Tensor, valid: Tensor) -> Tensor:
        return self.second(pooled)


class BiasWithoutEntries(Own):
    def finish(self, pooled: Tensor, valid: Tensor) -> Tensor:
        return self.second(pooled)


class NeedsRoom(Own):
    """The mean over no entry is NaN, also where none is valid."""

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        gone = x.masked_fill(~valid[..., None], 0)
        return super().forward(x, valid) + 0 * gone.mean(dim=1)


class MaxDetached(Own):
    def mean(self, x: Tensor, valid: Tensor) -> Tensor:
        kept = torch.cat([x[:, :-1], x[:, -1:].detach()], dim=1)
        return super().mean(kept, valid)


class EntriesInOneVector(Own):
    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        return super().forward(x, valid).flatten()


BROKEN = [
    (MeanOverPadding, Law.BATCH, "set 0 alone, without its padding, must equal"),
    (PaddedKeysAttend, Law.BATCH, "set 0 alone, without its padding, must equal"),
    (TakesAPrefix, Law.SET, "in (another|reverse) order"),
    (PositionsOfSlots, Law.SET, "the output of the entries in another order"),
    (UsesTheFirst, Law.SET, "the output of the entries in another order"),
    (SeesItsBatchMates, Law.BATCH, "set 0 alone"),
    (LooksAtPadding, Law.PADDING, "features at padding changed the output"),
    (NanWithoutEntries, Law.PADDING, "with one set without an entry, the output is nan"),
    (BiasWithoutEntries, Law.PADDING, "the output of an empty set must be exactly zero"),
    (NeedsRoom, Law.PADDING, "with room for no entry, the output is nan"),
    (MaxDetached, Law.LEARNS, "a valid entry gets no gradient"),
    (EntriesInOneVector, Law.INTERFACE, "the output must be"),
]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("broken", "law", "text"), BROKEN, ids=[case[0].__name__ for case in BROKEN]
)
def test_broken_modules_fail(broken: type[Own], law: Law, text: str, seed: int) -> None:
    with violates(law, text):
        assert_set_contract(broken(), DIM, seed=seed)


class LeavesPadding(PerEntry):
    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        x = torch.tanh(self.first(x.masked_fill(~valid[..., None], 0)))
        return x + self.mean(x, valid)[:, None]


class Sorted(PerEntry):
    """Gives the features of the valid entries first."""

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        out = super().forward(x, valid)
        order = (~valid).long().argsort(dim=1, stable=True)
        return out.gather(1, order[..., None].expand_as(out))


def test_broken_modules_of_entries_fail() -> None:
    with violates(Law.PADDING, "the output of padding must be exactly zero"):
        assert_set_contract(LeavesPadding(), DIM, per_entry=True)
    with violates(Law.PADDING, "the output of padding must be exactly zero"):
        assert_set_contract(Sorted(), DIM, per_entry=True)


def test_functions_pass_too() -> None:
    def total(x: Tensor, valid: Tensor) -> Tensor:
        return F.gelu(x.masked_fill(~valid[..., None], 0)).sum(dim=1)

    assert_set_contract(total, DIM)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"batch_size": 1}, "batch_size=1: must be at least 2"),
        ({"set_size": 2}, "set_size=2: must be at least 3"),
        ({"tolerance": 0.0}, "tolerance=0: must be above 0"),
    ],
)
def test_bad_arguments(arguments: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        assert_set_contract(Own(), DIM, **arguments)
