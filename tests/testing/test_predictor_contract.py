"""`assert_predictor_contract` passes `MaskedPredictor` and fails predictors with known errors."""

import pytest
import torch
from tests.testing.violations import violates
from torch import Tensor, nn
from torch.nn import functional as F

from jepakit import MaskedPredictor, TokenSet
from jepakit.testing import assert_predictor_contract
from jepakit.testing._violation import Law

DIM, GRID = 16, (3, 4)


class Own(nn.Module):
    """A user's predictor that keeps the contract; the broken ones change one method of it."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(0.02 * torch.randn(12, DIM))
        self.mask_token = nn.Parameter(torch.zeros(DIM))
        self.query, self.key_value = nn.Linear(DIM, DIM), nn.Linear(DIM, 2 * DIM)
        self.extra_key = nn.Parameter(torch.zeros(1, 1, DIM))  # a key that is always there
        self.out = nn.Linear(DIM, DIM)
        nn.init.zeros_(self.out.weight)  # at its initial values it predicts zeros

    def embed_context(self, features: Tensor, context: TokenSet) -> Tensor:
        return features.masked_fill(~context.valid.unsqueeze(-1), 0) + self.position[context.idx]

    def embed_targets(self, targets: TokenSet) -> Tensor:
        return self.mask_token + self.position[targets.idx.flatten(1)]

    def keys(self, context: TokenSet) -> Tensor | None:
        return context.valid

    def finish(self, out: Tensor, targets: TokenSet) -> Tensor:
        return out.masked_fill(~targets.valid.unsqueeze(-1), 0)

    def attend(self, q: Tensor, known: Tensor, keys: Tensor | None) -> Tensor:
        k, v = self.key_value(torch.cat([self.extra_key.expand(len(q), -1, -1), known], 1)).chunk(
            2, 2
        )
        mask = None
        if keys is not None:
            mask = torch.cat([keys.new_ones(len(keys), 1), keys], dim=1)[:, None]
        return q + F.scaled_dot_product_attention(self.query(q), k, v, mask)

    def forward(self, features: Tensor, context: TokenSet, targets: TokenSet) -> Tensor:
        x = self.attend(
            self.embed_targets(targets), self.embed_context(features, context), self.keys(context)
        )
        return self.finish(self.out(x).view(*targets.shape, DIM), targets)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("position", ["sincos", "rope", "learned"])
@pytest.mark.parametrize("grid", [(7,), (3, 4), (2, 3, 2)])
def test_masked_predictor_passes(grid, position, joint):
    """And its mode and its tensors are left as they were, law 15."""
    predictor = MaskedPredictor(
        grid, 10, predictor_embed_dim=48, depth=2, num_heads=4, position=position, joint=joint
    ).train()
    before = {name: tensor.clone() for name, tensor in predictor.state_dict().items()}
    assert_predictor_contract(predictor, grid, 10, num_targets=1 + joint, seed=len(grid))
    assert predictor.training, "the predictor is left as it was"
    assert all(torch.equal(tensor, before[n]) for n, tensor in predictor.state_dict().items())
    assert all(parameter.grad is None for parameter in predictor.parameters())


@pytest.mark.parametrize("seed", range(5))
def test_a_users_own_predictor_passes(seed):
    assert_predictor_contract(
        Own(), GRID, DIM, seed=seed, batch_size=2 + seed, num_targets=1 + seed
    )


class PaddedKeysAttend(Own):
    def keys(self, context: TokenSet) -> None:
        return None


class SeesItsBatchMates(Own):
    def finish(self, out: Tensor, targets: TokenSet) -> Tensor:
        return super().finish(out + out.mean(dim=0), targets)


class AveragesOverPadding(Own):
    def finish(self, out: Tensor, targets: TokenSet) -> Tensor:
        return super().finish(out + out.mean(dim=2, keepdim=True), targets)


class LeavesPadding(Own):
    def finish(self, out: Tensor, targets: TokenSet) -> Tensor:
        return out


class LooksAtPadding(Own):
    """Padding is no key, and its features are in a mean."""

    def embed_context(self, features: Tensor, context: TokenSet) -> Tensor:
        total = features.sum(dim=1) / context.counts().clamp(min=1).unsqueeze(-1)
        return super().embed_context(features, context) + total.unsqueeze(1)


class ZeroInTheForwardOnly(Own):
    def finish(self, out: Tensor, targets: TokenSet) -> Tensor:
        return out + (super().finish(out, targets) - out).detach()


class NanWithoutContext(Own):
    def attend(self, q: Tensor, known: Tensor, keys: Tensor | None) -> Tensor:
        k, v = self.key_value(known + self.extra_key).chunk(2, dim=-1)
        scores = (self.query(q) @ k.mT).masked_fill(~keys[:, None], -torch.inf)
        return q + scores.softmax(dim=-1) @ v


class NoPositionOfTargets(Own):
    def embed_targets(self, targets: TokenSet) -> Tensor:
        return self.mask_token.expand(*targets.idx.flatten(1).shape, -1)


class NoPositionOfContext(Own):
    def embed_context(self, features: Tensor, context: TokenSet) -> Tensor:
        return features.masked_fill(~context.valid.unsqueeze(-1), 0)


class UnusedParameter(Own):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(3))


class ParameterTimesZero(Own):
    def __init__(self) -> None:
        super().__init__()
        self.off = nn.Parameter(torch.zeros(DIM))

    def embed_targets(self, targets: TokenSet) -> Tensor:
        return super().embed_targets(targets) + 0 * self.off


class IgnoresTheContext(Own):
    def embed_context(self, features: Tensor, context: TokenSet) -> Tensor:
        return self.position[context.idx]


class PositionOfTheSlot(Own):
    def embed_targets(self, targets: TokenSet) -> Tensor:
        slot = torch.arange(targets.shape[-1]).expand(targets.shape).flatten(1) % 12
        return self.mask_token + self.position[slot]


class PositionInTheBlock(Own):
    def embed_targets(self, targets: TokenSet) -> Tensor:
        inside = (targets.idx - targets.idx[..., :1]).clamp_min(0).flatten(1)
        return self.mask_token + self.position[inside]


class UsesTheFirstTokenOnly(Own):
    def embed_context(self, features: Tensor, context: TokenSet) -> Tensor:
        kept = torch.cat([features[:, :1], features[:, 1:].detach()], dim=1)
        return super().embed_context(kept, context)


class OneBlockForAll(Own):
    def forward(self, features: Tensor, context: TokenSet, targets: TokenSet) -> Tensor:
        return super().forward(features, context, targets).flatten(1, 2)


class Detached(Own):
    def forward(self, features: Tensor, context: TokenSet, targets: TokenSet) -> Tensor:
        return super().forward(features, context, targets).detach()


BROKEN = [
    (PaddedKeysAttend, Law.BATCH, r"sample \d in a padded batch must equal the sample alone"),
    (SeesItsBatchMates, Law.BATCH, r"sample \d in a padded batch must equal the sample alone"),
    (AveragesOverPadding, Law.BATCH, r"sample \d in a padded batch must equal the sample alone"),
    (
        LeavesPadding,
        Law.PADDING,
        "padding must be exactly zero, .*, at sample 0, target 0, entry 1",
    ),
    (LooksAtPadding, Law.PADDING, "features at padded context changed the output"),
    (ZeroInTheForwardOnly, Law.PADDING, "values at padding changed the gradient of"),
    (NanWithoutContext, Law.PADDING, "the prediction is nan, at"),
    (NoPositionOfTargets, Law.POSITIONS, r"positions 0 and 1 differ by .* mask tokens need"),
    (PositionOfTheSlot, Law.POSITIONS, "targets of one token, at positions 0 and 1"),
    (PositionInTheBlock, Law.POSITIONS, "targets of one token, at positions 0 and 1"),
    (NoPositionOfContext, Law.POSITIONS, "moved by one position, .* context tokens need"),
    (UnusedParameter, Law.LEARNS, "unused gets no gradient; DDP stops"),
    (ParameterTimesZero, Law.LEARNS, "the gradient of off is zero everywhere"),
    (IgnoresTheContext, Law.LEARNS, "the context gets no gradient"),
    (
        UsesTheFirstTokenOnly,
        Law.LEARNS,
        r"token of the context gets no gradient, at sample \d, entry 1",
    ),
    (OneBlockForAll, Law.INTERFACE, r"must be \[b m n d\] = \(4, 2, 15, 16\), got \(4, 30, 16\)"),
    (Detached, Law.INTERFACE, "the output carries no gradient"),
]


@pytest.mark.parametrize(("kind", "law", "text"), BROKEN)
def test_broken(kind, law, text):
    """Traps: padded context as keys; no position on the mask tokens, or on them alone; an unused
    parameter, at which DDP stops."""
    with violates(law, text):
        assert_predictor_contract(kind(), GRID, DIM)


def test_arguments():
    with pytest.raises(ValueError, match=r"^grid_size=\(1, 2\): must have at least 3 positions$"):
        assert_predictor_contract(Own(), (1, 2), DIM)
    with pytest.raises(ValueError, match=r"^batch_size=1: must be at least 2$"):
        assert_predictor_contract(Own(), GRID, DIM, batch_size=1)
