"""Tiny timm backbones of every kind, and ragged token sets, for the tests of `jepakit.nn`."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from jepakit.nn import MaskedViT
from jepakit.tokens import TokenSet

TINY: dict[str, Any] = {"depth": 2, "embed_dim": 64, "num_heads": 4, "num_classes": 0}

# id: (timm's name, arguments), at most a 4x5 grid. Only the block types, positions, prefix tokens
# and norms of the originals are kept.
BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit_cls": ("vit_tiny_patch16_224", {"img_size": 64}),
    "vit_nonsquare": ("vit_tiny_patch16_224", {"img_size": (48, 80)}),
    "vit_dynamic": ("vit_tiny_patch16_224", {"img_size": 48, "dynamic_img_size": True}),
    "vit_nonsquare_patch": ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": (16, 8)}),
    "vit_in21k_head": ("vit_tiny_patch16_224.augreg_in21k", {"img_size": 48, "num_classes": 99}),
    "vit_no_position": ("vit_tiny_patch16_224", {"img_size": 48, "pos_embed": "none"}),
    "gap_no_cls": ("vit_medium_patch16_gap_240", {"img_size": 64}),
    "gap_reg1": ("vit_little_patch16_reg1_gap_256", {"img_size": 64}),
    "post_norm": ("vit_base_patch16_rpn_224", {"img_size": 48}),
    "parallel_scaling": ("vit_pwee_patch16_reg1_gap_256", {"img_size": 64}),
    "parallel_things": ("vit_small_patch16_18x2_224", {"img_size": 48}),
    "differential": ("vit_dlittle_patch16_reg1_gap_256", {"img_size": 64}),
    "differential_parallel": ("vit_dpwee_patch16_reg1_gap_256", {"img_size": 64}),
    "dinov2": ("vit_small_patch14_dinov2", {"img_size": 42}),
    "dinov2_reg4": ("vit_small_patch14_reg4_dinov2", {"img_size": 56}),
    "deit3": ("deit3_small_patch16_224", {"img_size": 64}),
    "deit_distilled": ("deit_tiny_distilled_patch16_224", {"img_size": 64}),
    "siglip": ("vit_base_patch16_siglip_224", {"img_size": 64}),
    "siglip_reg4": ("vit_so150m_patch16_reg4_map_256", {"img_size": 48}),
    "clip": ("vit_base_patch16_clip_quickgelu_224", {"img_size": 48}),
    "flexivit": ("flexivit_small", {"img_size": 48}),
    "beit3": ("beit3_base_patch16_224", {"img_size": 48}),
    "eva": ("eva_giant_patch14_224", {"img_size": 42}),
    "eva02": ("eva02_tiny_patch14_224", {"img_size": 56}),
    "eva02_dynamic": ("eva02_tiny_patch14_224", {"img_size": (42, 56), "dynamic_img_size": True}),
    "rope_gap_reg1": ("vit_medium_patch16_rope_reg1_gap_256", {"img_size": 64}),
    "rope_axial": ("vit_small_patch16_rope_224", {"img_size": 48}),
    "rope_mixed": ("vit_small_patch16_rope_mixed_224", {"img_size": (48, 64)}),
    "rope_mixed_ape": ("vit_small_patch16_rope_mixed_ape_224", {"img_size": 64}),
    "dinov3": ("vit_small_patch16_dinov3", {"img_size": 64}),
    "dinov3_plus": ("vit_small_plus_patch16_dinov3", {"img_size": (48, 80)}),
    "pe_core": ("vit_pe_core_tiny_patch16_384", {"img_size": 48}),
    "pe_spatial": ("vit_pe_spatial_tiny_patch16_512", {"img_size": 48}),
    "beit": ("beit_base_patch16_224", {"img_size": 64}),
    "beit_v2": ("beitv2_base_patch16_224", {"img_size": (48, 80)}),
    "beit_shared": (
        "beit_base_patch16_224",
        {"img_size": 64, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": True},
    ),
    "beit_absolute": (
        "beit_base_patch16_224",
        {"img_size": 48, "use_rel_pos_bias": False, "use_abs_pos_emb": True},
    ),
    # timm's MLP of relative positions has a dropout of its own; a table of biases has none.
    "relpos": ("vit_relpos_small_patch16_224", {"img_size": (48, 64), "rel_pos_type": "bias"}),
    "relpos_cls": ("vit_relpos_base_patch16_cls_224", {"img_size": 64}),
    "relpos_clsgap": ("vit_relpos_base_patch16_clsgap_224", {"img_size": 48}),
    # Without a norm in front, the tokens of larger patches would leave every query one key.
    "relpos_mlp": (
        "vit_relpos_base_patch32_plus_rpn_256",
        {"img_size": (24, 32), "patch_size": 8},
    ),
    "relpos_shared": ("vit_srelpos_small_patch16_224", {"img_size": 64, "rel_pos_type": "bias"}),
    "relpos_shared_mlp": ("vit_srelpos_medium_patch16_224", {"img_size": 48}),
    "naflex": ("naflexvit_base_patch16_gap", {"pos_embed_grid_size": (3, 4)}),
    "naflex_factorised": ("naflexvit_base_patch16_parfac_gap", {"pos_embed_grid_size": (4, 4)}),
    "naflex_map_reg1": ("naflexvit_so150m2_patch16_reg1_map", {"pos_embed_grid_size": (4, 5)}),
    "naflex_siglip": ("naflexvit_base_patch16_siglip", {"pos_embed_grid_size": (4, 4)}),
    "naflex_radio": ("naflexvit_base_patch16_radio_v3", {"pos_embed_grid_size": (3, 3)}),
    # A convolutional stem sees beyond its patch, so these keep law 3 but not law 4.
    "hybrid_resnet": ("vit_tiny_r_s16_p8_224", {"img_size": 64}),
}
# Older versions of timm know fewer names; those of today know all.
BACKBONES = {kind: spec for kind, spec in BACKBONES.items() if timm.is_model(spec[0])}
# What tests that build many copies use: class token, registers without one, rotary, mixed rotary,
# relative bias of each block and of all, and the embedding of a module of its own.
FEW = (
    "vit_cls",
    "gap_no_cls",
    "dinov2_reg4",
    "dinov3",
    "rope_mixed",
    "beit",
    "relpos",
    "relpos_shared",
    "naflex",
)


def scramble(module: nn.Module) -> None:
    """Move every parameter far from its initial value.

    Layer scales start at 1e-5 and biases and class tokens at 0: with those, blocks do next to
    nothing, and laws about what blocks may see hold whatever they see.
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            scale = 0.5 if "pos_embed" in name or "token" in name else 0.1
            if "rel_pos.mlp" in name:
                scale = 0.01  # or its biases leave every query one key
            parameter.add_(torch.randn_like(parameter), alpha=scale)
            if "gamma" in name:
                parameter.add_(1.0)
            if "relative_position_bias_table" in name:  # zero at first
                parameter.add_(torch.randn_like(parameter))


def _encoder(kind: str, wrapped: bool = True, **changes: Any) -> MaskedViT:
    torch.manual_seed(len(kind))
    name, arguments = BACKBONES[kind]
    backbone = timm.create_model(name, **(TINY | arguments | changes)).eval()
    scramble(backbone)
    return MaskedViT(backbone) if wrapped else backbone


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "any_kind" in metafunc.fixturenames:
        metafunc.parametrize("any_kind", BACKBONES)
    if "patch_kind" in metafunc.fixturenames:
        metafunc.parametrize("patch_kind", [k for k in BACKBONES if not k.startswith("hybrid")])
    if "hybrid_kind" in metafunc.fixturenames:
        metafunc.parametrize("hybrid_kind", [k for k in BACKBONES if k.startswith("hybrid")])
    if "few_kind" in metafunc.fixturenames:
        metafunc.parametrize("few_kind", FEW)


@pytest.fixture(scope="session")
def build() -> Callable[..., MaskedViT]:
    """A function `(kind, wrapped=True, **changes)` to a new scrambled encoder in eval mode."""
    return _encoder


@pytest.fixture(scope="session")
def cached() -> Callable[[str], MaskedViT]:
    """Like `build`, one encoder for each kind; tests leave it as it is."""
    return cache(_encoder)


@pytest.fixture(scope="session")
def images_for() -> Callable[..., torch.Tensor]:
    """A function `(encoder, batch)` to random images of the size that the encoder was built for."""

    def images(encoder: MaskedViT, batch: int) -> torch.Tensor:
        sides = zip(encoder.grid_size, _patch_size(encoder), strict=True)
        return torch.randn(batch, encoder.backbone.in_chans, *(cells * p for cells, p in sides))

    return images


def _patch_size(encoder: MaskedViT) -> tuple[int, int]:
    model = encoder.backbone
    embed = model.embeds if hasattr(model, "embeds") else model.patch_embed
    return tuple(embed.feat_ratio(as_scalar=False))


@pytest.fixture(scope="session")
def patch_pixels() -> Callable[..., torch.Tensor]:
    """A function `(encoder, mask)`: True on the pixels of the patches that a flat mask marks."""

    def pixels(encoder: MaskedViT, mask: torch.Tensor) -> torch.Tensor:
        height, width = _patch_size(encoder)
        field = mask.view(-1, 1, *encoder.grid_size)
        return field.repeat_interleave(height, dim=2).repeat_interleave(width, dim=3)

    return pixels


@pytest.fixture
def hide_keys(monkeypatch) -> Callable[[torch.Tensor], None]:
    """A function `(seen)`: from now on every attention over `seen.shape[1]` keys masks the rest.

    It works on torch's function, below all of timm and jepakit, so that what it shows is no
    property of theirs.
    """
    original = F.scaled_dot_product_attention

    def hide(seen: torch.Tensor) -> None:
        def masked(q, k, v, attn_mask=None, **options):
            assert k.shape[-2] == seen.shape[1]
            bias = torch.zeros(len(seen), 1, 1, seen.shape[1])
            bias = bias.masked_fill(~seen[:, None, None, :], -torch.inf)
            bias = bias if attn_mask is None else bias + attn_mask
            return original(q, k, v, attn_mask=bias, **options)

        monkeypatch.setattr(F, "scaled_dot_product_attention", masked)

    return hide


@pytest.fixture(scope="session")
def ragged() -> Callable[..., TokenSet]:
    """A function to sets of random sizes, each possibly empty or everything.

    `(grid_size, batch_shape, at_least=0)`; the length is the longest set's, and `padded` is True.
    """

    def sets(grid_size: tuple[int, ...], *shape: int, at_least: int = 0) -> TokenSet:
        size = torch.Size(grid_size).numel()
        order = torch.rand(*shape, size).argsort(dim=-1)
        counts = torch.randint(at_least, size + 1, (*shape, 1))
        tokens = TokenSet.from_mask(order < counts, grid_size)
        return TokenSet(tokens.idx, tokens.valid, grid_size, padded=True)

    return sets


@pytest.fixture(scope="session")
def assert_close() -> Callable[..., None]:
    """`(actual, expected, tolerance=1e-5)`, relative to the largest expected value."""

    def check(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
        assert actual.shape == expected.shape
        assert torch.isfinite(actual).all() and torch.isfinite(expected).all()
        if actual.numel():
            error = (actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
            assert error <= tolerance, f"{error:.2e} of the largest value"

    return check
