"""`assert_encoder_contract` passes `MaskedViT` and fails encoders with known errors."""

import pytest
import timm
import torch
from tests.testing.violations import violates
from torch import Tensor, nn
from torch.nn import functional as F

from jepakit import MaskedViT, TokenSet, put_tokens, take_tokens
from jepakit.testing import assert_encoder_contract
from jepakit.testing._violation import Law

DIM, GRID, PATCH = 16, (3, 4), 4


def images(batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, GRID[0] * PATCH, GRID[1] * PATCH)


class Own(nn.Module):
    """A user's encoder that keeps the contract; the broken ones change one method of it."""

    def __init__(self) -> None:
        super().__init__()
        self.grid_size, self.embed_dim = GRID, DIM
        self.patches = nn.Conv2d(3, DIM, PATCH, PATCH)
        self.position = nn.Parameter(0.02 * torch.randn(12, DIM))
        self.cls = nn.Parameter(torch.zeros(1, 1, DIM))
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.mlp = nn.Sequential(nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))
        self.scale = nn.Parameter(torch.full((DIM,), 1e-5))  # hides what the block does

    def keep(self, x: Tensor, context: TokenSet) -> Tensor:
        return take_tokens(x, context)

    def keys(self, context: TokenSet) -> Tensor | None:
        return context.valid

    def block(self, x: Tensor, keys: Tensor | None) -> Tensor:
        mask = None
        if keys is not None:
            mask = torch.cat([keys.new_ones(len(keys), 1), keys], dim=1)[:, None]
        q, k, v = self.qkv(F.layer_norm(x, (DIM,))).chunk(3, dim=-1)
        x = x + self.scale * self.out(F.scaled_dot_product_attention(q, k, v, mask))
        return x + self.scale * self.mlp(F.layer_norm(x, (DIM,)))

    def finish(self, x: Tensor, context: TokenSet) -> Tensor:
        return x.masked_fill(~context.valid.unsqueeze(-1), 0)

    def forward(self, images: Tensor, context: TokenSet | None = None) -> Tensor:
        x = self.patches(images).flatten(2).mT + self.position
        kept = x if context is None else self.keep(x, context)
        keys = None if context is None else self.keys(context)
        kept = torch.cat([self.cls.expand(len(x), -1, -1), kept], dim=1)
        out = self.block(kept, keys)[:, 1:]
        return out if context is None else self.finish(out, context)


KINDS = {
    "vit_cls": ("vit_tiny_patch16_224", {"img_size": (48, 80)}),
    "gap_no_cls": ("vit_medium_patch16_gap_240", {"img_size": 64}),
    "dinov2_reg4": ("vit_small_patch14_reg4_dinov2", {"img_size": 56}),
    "dinov3": ("vit_small_patch16_dinov3", {"img_size": 64}),
    "beit": ("beit_base_patch16_224", {"img_size": (48, 64)}),
    "relpos": ("vit_relpos_small_patch16_224", {"img_size": 64}),
    "relpos_shared": ("vit_srelpos_small_patch16_224", {"img_size": 64}),
    "naflex": ("naflexvit_base_patch16_gap", {"pos_embed_grid_size": (3, 4)}),
}


def test_replace_mode_passes():
    """All but the test of the cost, since no patch is dropped."""
    backbone = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        window_size=2,
        embed_dim=16,
        depths=(2, 2),
        num_heads=(1, 2),
        num_classes=0,
    )
    encoder = MaskedViT(backbone, mask_mode="replace")
    assert_encoder_contract(encoder, torch.randn(3, 3, 32, 32), drops_hidden=False)


@pytest.mark.parametrize("kind", KINDS)
def test_masked_vit_passes(kind):
    """And its mode and its tensors are left as they were, law 15."""
    name, arguments = KINDS[kind]
    backbone = timm.create_model(
        name, **arguments, depth=2, embed_dim=64, num_heads=4, num_classes=0, drop_path_rate=0.3
    )
    encoder = MaskedViT(backbone).train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    sides = [cells * (14 if kind == "dinov2_reg4" else 16) for cells in encoder.grid_size]
    assert_encoder_contract(encoder, torch.randn(3, 3, *sides))
    assert encoder.training, "the encoder is left as it was"
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in encoder.parameters())


@pytest.mark.parametrize("seed", range(5))
def test_a_users_own_encoder_passes(seed):
    assert_encoder_contract(Own(), images(2 + seed), seed=seed)
    assert_encoder_contract(Own().requires_grad_(False), images())


class OfSequences(nn.Module):
    """An encoder of sequences `[b, c, length]`, token by token."""

    def __init__(self) -> None:
        super().__init__()
        self.grid_size, self.embed_dim = (6,), DIM
        self.embed, self.mlp = nn.Conv1d(2, DIM, 3, 3), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor, context: TokenSet | None = None) -> Tensor:
        x = self.embed(x).mT
        if context is None:
            return self.mlp(x)
        return self.mlp(take_tokens(x, context)).masked_fill(~context.valid.unsqueeze(-1), 0)


class TorchEncoder(nn.Module):
    """An encoder of torch's own layers, which have a fused path for even numbers of heads."""

    grid_size, embed_dim = (4, 4), 24

    def __init__(self, num_heads: int, hides: bool = True) -> None:
        super().__init__()
        self.hides = hides
        self.embed = nn.Conv2d(3, 24, 4, 4)
        self.positions = nn.Parameter(torch.randn(16, 24))
        layer = nn.TransformerEncoderLayer(24, num_heads, 48, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2)

    def forward(self, images, context=None):
        x = self.embed(images).flatten(2).mT + self.positions
        if context is None:
            return self.layers(x)
        if not self.hides:
            hidden = self.layers(x, src_key_padding_mask=~context.to_mask().flatten(1))
            return take_tokens(hidden, context)
        x = take_tokens(x, context)
        x = self.layers(x, src_key_padding_mask=~context.valid)
        return x.masked_fill(~context.valid.unsqueeze(-1), 0)


@pytest.mark.filterwarnings("ignore:.*nested.tensor")
@pytest.mark.parametrize("num_heads", [1, 2, 4, 6])
def test_torchs_own_layers_pass(num_heads: int) -> None:
    """Trap: a leak is reported that is not there, since fused layers count no operations."""
    encoder = TorchEncoder(num_heads)
    enabled = torch.backends.mha.get_fastpath_enabled()
    assert_encoder_contract(encoder, torch.randn(3, 3, 16, 16))
    assert torch.backends.mha.get_fastpath_enabled() == enabled
    with pytest.raises(AssertionError, match="law 4, no leak"):
        assert_encoder_contract(TorchEncoder(num_heads, hides=False), torch.randn(3, 3, 16, 16))


def test_sequences_pass():
    assert_encoder_contract(OfSequences(), torch.randn(3, 2, 18), positions=False)


# Positions


class PositionOfTheSlot(Own):
    def forward(self, images: Tensor, context: TokenSet | None = None) -> Tensor:
        context = TokenSet.full(GRID, (len(images),)) if context is None else context
        x = take_tokens(self.patches(images).flatten(2).mT, context)
        slot = torch.arange(context.shape[-1]).clamp_max(11)
        kept = torch.cat([self.cls.expand(len(x), -1, -1), x + self.position[slot]], dim=1)
        return self.finish(self.block(kept, self.keys(context))[:, 1:], context)


class NoPosition(PositionOfTheSlot):
    def __init__(self) -> None:
        super().__init__()
        del self.position
        self.register_buffer("position", torch.zeros(12, DIM))


@pytest.mark.parametrize("kind", [PositionOfTheSlot, NoPosition])
def test_positions(kind):
    """Trap: positions of the tokens that are left, counted anew."""
    with violates(Law.POSITIONS, "positions 0 and 1, .* 0 and 11, differ by at most 0"):
        assert_encoder_contract(kind(), images())
    assert_encoder_contract(NoPosition(), images(), positions=False)


class Rotary(Own):
    """Attention depends on the distances of positions alone."""

    def forward(self, images: Tensor, context: TokenSet | None = None) -> Tensor:
        context = TokenSet.full(GRID, (len(images),)) if context is None else context
        x = take_tokens(self.patches(images).flatten(2).mT, context)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        angle = context.idx[..., None] * torch.logspace(0, -2, DIM // 2)
        q, k = (self.turned(t, angle) for t in (q, k))
        mask = context.valid[:, None] | torch.eye(x.shape[1], dtype=torch.bool)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, mask))
        return self.finish(x + self.mlp(x), context)

    def turned(self, x: Tensor, angle: Tensor) -> Tensor:
        one, two = x.chunk(2, dim=-1)
        sin, cos = angle.sin(), angle.cos()
        return torch.cat([one * cos - two * sin, one * sin + two * cos], dim=-1)


def test_rotary_positions_pass():
    assert_encoder_contract(Rotary(), images())


# Law 3


class ShiftedByTheClassToken(Own):
    def forward(self, images: Tensor, context: TokenSet | None = None) -> Tensor:
        x = self.patches(images).flatten(2).mT + self.position
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1)
        if context is None:
            return self.block(x, None)[:, 1:]
        kept = take_tokens(x[:, :-1], context)  # index 0 is the class token
        out = self.block(torch.cat([x[:, :1], kept], dim=1), context.valid)
        return self.finish(out[:, 1:], context)


class NeverEval(Own):
    def block(self, x: Tensor, keys: Tensor | None) -> Tensor:
        return F.dropout(super().block(x, keys), 0.5, training=True)


class OtherPositionsWithAContext(Own):
    def keep(self, x: Tensor, context: TokenSet) -> Tensor:
        return super().keep(x - self.position, context)


class FirstPatchNeverUsed(Own):
    def forward(self, images: Tensor, context: TokenSet | None = None) -> Tensor:
        images = images.clone()
        images[..., :PATCH, :PATCH] = 0
        return super().forward(images, context)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (ShiftedByTheClassToken, "the full context must equal no context"),
        (NeverEval, "two calls in eval mode must agree"),
        (OtherPositionsWithAContext, "the full context must equal no context"),
        (FirstPatchNeverUsed, r"no gradient at a visible patch, at sample \d, position 0"),
    ],
)
def test_full_context(kind, text):
    """Traps: patches gathered after the class token was put in front; drop-out in eval mode."""
    with violates(Law.FULL, text):
        assert_encoder_contract(kind(), images())


# Law 4


class TimesZero(Own):
    """Hidden tokens are zeroed and stay in attention."""

    def forward(self, images: Tensor, context: TokenSet | None = None) -> Tensor:
        x = self.patches(images).flatten(2).mT
        if context is not None:
            x = x * context.to_mask().unsqueeze(-1)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x + self.position], dim=1)
        out = self.block(x, None)[:, 1:]
        return out if context is None else take_tokens(out, context)


class IgnoresTheContext(Own):
    def forward(self, images: Tensor, context: TokenSet | None = None) -> Tensor:
        out = super().forward(images)
        return out if context is None else take_tokens(out, context)


class MasksAsKeys(Own):
    """Hidden patches are computed and masked as keys: correct, but saves no operations."""

    def keep(self, x: Tensor, context: TokenSet) -> Tensor:
        return x

    def keys(self, context: TokenSet) -> Tensor:
        return context.to_mask()

    def finish(self, x: Tensor, context: TokenSet) -> Tensor:
        return take_tokens(x, context)


class PaddingGathersPatch0(Own):
    def keep(self, x: Tensor, context: TokenSet) -> Tensor:
        return x.gather(1, context.idx.unsqueeze(-1).expand(-1, -1, DIM))

    def keys(self, context: TokenSet) -> None:
        return None


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (TimesZero, "one visible patch takes as many operations as all 12"),
        (IgnoresTheContext, "other pixels in hidden patches changed the output"),
        (MasksAsKeys, "one visible patch takes as many operations as all 12"),
        (PaddingGathersPatch0, "other pixels in hidden patches changed the output"),
    ],
)
def test_no_leak(kind, text):
    """Traps: masked tokens multiplied by zero but left in attention; indices padded with 0."""
    with violates(Law.LEAK, text):
        assert_encoder_contract(kind(), images())


def test_the_gradient_shows_a_leak_below_the_tolerance():
    with violates(Law.LEAK, r"has a gradient at a hidden patch, at sample \d, position \d+"):
        assert_encoder_contract(IgnoresTheContext(), images(), tolerance=1e9)


def test_masking_as_keys_is_allowed_without_drops_hidden():
    assert_encoder_contract(MasksAsKeys(), images(), drops_hidden=False)


# Laws 5 and 6


class PaddedKeysAttend(Own):
    def keys(self, context: TokenSet) -> None:
        return None


class NormalisesOverTheBatch(Own):
    def block(self, x: Tensor, keys: Tensor | None) -> Tensor:
        return super().block(x - x[:, :1].mean(dim=0) - x.mean(dim=(0, 1)), keys)


class LeavesPadding(Own):
    def finish(self, x: Tensor, context: TokenSet) -> Tensor:
        return x


class ZeroInTheForwardOnly(Own):
    def finish(self, x: Tensor, context: TokenSet) -> Tensor:
        return x + (super().finish(x, context) - x).detach()


class NanWhenNothingIsVisible(Own):
    """No class token, and a softmax written by hand."""

    def forward(self, images: Tensor, context: TokenSet | None = None) -> Tensor:
        x = self.patches(images).flatten(2).mT + self.position
        x = x if context is None else take_tokens(x, context)
        scores = x @ x.mT
        if context is not None:
            scores = scores.masked_fill(~context.valid[:, None], -torch.inf)
        x = self.mlp(x + scores.softmax(dim=-1) @ x)
        return x if context is None else self.finish(x, context)


class NanGradientWhenNothingIsVisible(NanWhenNothingIsVisible):
    def finish(self, x: Tensor, context: TokenSet) -> Tensor:
        return torch.where(context.valid.unsqueeze(-1), x, 0)


def test_batch_invariance():
    """Trap: padded keys attend, so that a sample changes with its batch-mates."""
    with violates(Law.BATCH, r"sample \d in a padded batch must equal the sample alone"):
        assert_encoder_contract(PaddedKeysAttend(), images())


class MeanOfTheBatch(Own):
    def finish(self, x: Tensor, context: TokenSet) -> Tensor:
        return super().finish(x - x[:, :1].mean(dim=0).detach() * 1e-2, context)

    def forward(self, images: Tensor, context: TokenSet | None = None) -> Tensor:
        return super().forward(images, context or TokenSet.full(GRID, (len(images),)))


def test_batch_mates():
    # Either law finds a leak through batch-mates.
    with pytest.raises(AssertionError, match=r"^law (4, no leak|5, batch invariance): "):
        assert_encoder_contract(MeanOfTheBatch(), images())


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (LeavesPadding, "padding must be exactly zero, .*, at sample 0, entry 1"),
        (ZeroInTheForwardOnly, "a gradient that arrives at padding reached"),
        (
            NanGradientWhenNothingIsVisible,
            "with one sample without a visible patch, the gradient of",
        ),
    ],
)
def test_padding(kind, text):
    """Traps: padding that comes out as something; a fully masked row that gives NaN."""
    with violates(Law.PADDING, text):
        assert_encoder_contract(kind(), images())


class NanOut(NanWhenNothingIsVisible):
    def finish(self, x: Tensor, context: TokenSet) -> Tensor:
        return x * context.valid.unsqueeze(-1)


def test_nan_in_the_output():
    with violates(Law.PADDING, "with one sample without a visible patch, the output is nan, at"):
        assert_encoder_contract(NanOut(), images())


# Interface


class ReturnsEverything(Own):
    def forward(self, images: Tensor, context: TokenSet | None = None) -> Tensor:
        out = super().forward(images, context)
        return out if context is None else put_tokens(out, context)


class ReturnsTheClassToken(Own):
    def forward(self, images: Tensor, context: TokenSet | None = None) -> Tensor:
        return torch.cat(
            [self.cls.expand(len(images), -1, -1), super().forward(images, context)], 1
        )


class Detached(Own):
    def forward(self, images: Tensor, context: TokenSet | None = None) -> Tensor:
        return super().forward(images, context).detach()


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (ReturnsEverything, r"must be \[b n d\] = \(4, 14, 16\), got \(4, 12, 16\)"),
        (ReturnsTheClassToken, r"must be \[b n d\] = \(4, 12, 16\), got \(4, 13, 16\)"),
        (Detached, "the output carries no gradient"),
    ],
)
def test_the_interface(kind, text):
    with violates(Law.INTERFACE, text):
        assert_encoder_contract(kind(), images())


def test_attributes():
    encoder = Own()
    del encoder.grid_size
    with violates(Law.INTERFACE, "an encoder must have grid_size; Own has none"):
        assert_encoder_contract(encoder, images())


@pytest.mark.parametrize("shape", [(1, 3, 12, 16), (4, 3, 12, 15), (4, 3, 12)])
def test_arguments(shape):
    with pytest.raises(ValueError, match=r"^images \(.*\): must be "):
        assert_encoder_contract(Own(), torch.randn(shape))
