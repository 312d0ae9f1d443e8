"""`TokenViT.inflate`: an image model's weights in an encoder of clips; all, or an error."""

from typing import Any

import pytest
import timm
import torch
from einops import rearrange, repeat
from torch import nn

from jepakit import MaskedViT, TokenSet, UnsupportedBackboneError
from jepakit.nn import TokenViT
from jepakit.testing import assert_encoder_contract

FRAMES = 6
# Without prefix and without biases of queries; class token; patches and images that are no squares;
# no positions; layer scales; registers; a class token without position.
PLAIN = [
    "gap_no_cls",
    "vit_cls",
    "vit_nonsquare",
    "vit_nonsquare_patch",
    "vit_dynamic",
    "vit_no_position",
    "dinov2",
    "dinov2_reg4",
    "deit3",
]


def still(images: torch.Tensor) -> torch.Tensor:
    return repeat(images, "b c h w -> b c t h w", t=FRAMES)


def of_image(vit: Any, images: torch.Tensor) -> torch.Tensor:
    return vit.forward_features(images)[:, vit.num_prefix_tokens :]


@pytest.mark.parametrize("tubelet_size", [1, 2, 3])
@pytest.mark.parametrize("kind", PLAIN)
def test_a_still_clip_has_the_features_of_its_image(
    kind, tubelet_size, build, images_for, assert_close
) -> None:
    """To 1e-5, at every step. Trap: a class token that counts once against T copies of a patch."""
    encoder = build(kind)
    vit, images = encoder.backbone, images_for(encoder, 2)
    inflated = TokenViT.inflate(vit, tubelet_size, FRAMES)
    steps = FRAMES // tubelet_size
    assert inflated.grid_size == (steps, *encoder.grid_size)
    assert inflated.num_prefix_tokens == vit.num_prefix_tokens and not inflated.training
    features = rearrange(inflated(still(images)), "b (t n) d -> t b n d", t=steps)
    for step in features:
        assert_close(step, of_image(vit, images))


def test_class_token_and_registers_keep_their_own_positions(assert_close) -> None:
    """Trap: with positions for prefix tokens, those of the class token go to a register."""
    vit = model("vit_tiny_patch16_224", img_size=32, reg_tokens=2)(None).eval()
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.3)
    images = torch.randn(2, 3, 32, 32)
    features = TokenViT.inflate(vit, 2, 2)(repeat(images, "b c h w -> b c t h w", t=2))
    assert_close(features, of_image(vit, images))


@pytest.mark.parametrize("kind", ["gap_no_cls", "vit_cls", "dinov2_reg4"])
def test_a_tube_of_a_still_clip_has_the_features_of_its_patches(
    kind, build, images_for, ragged, assert_close
) -> None:
    """The same places at every step are the context of the image, prefix tokens included."""
    encoder = build(kind)
    images, context = images_for(encoder, 3), ragged(encoder.grid_size, 3, at_least=1)
    inflated = TokenViT.inflate(encoder.backbone, 2, FRAMES)
    tube = TokenSet.from_mask(context.to_mask().repeat(1, 3), inflated.grid_size)
    features, expected = inflated(still(images), tube), encoder(images, context)
    for sample, count in enumerate(context.valid.sum(dim=1).tolist()):
        steps = features[sample, : 3 * count].unflatten(0, (3, count))
        for step in steps:
            assert_close(step, expected[sample, :count])


@pytest.mark.parametrize("kind", ["gap_no_cls", "dinov2_reg4"])
def test_contract_and_training(kind, build, images_for) -> None:
    encoder = build(kind)
    inflated = TokenViT.inflate(encoder.backbone, 2, 4)
    clip = torch.randn(3, 3, 4, *images_for(encoder, 1).shape[2:])
    assert_encoder_contract(inflated, clip)
    inflated(clip).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in inflated.parameters())
    assert all(parameter.grad is None for parameter in encoder.parameters()), "it is a copy"


def test_weights_are_copies(build) -> None:
    """Trap: training the clip model changes the image model."""
    vit = build("vit_cls", wrapped=False)
    theirs = {tensor.data_ptr() for tensor in vit.parameters()}
    inflated = TokenViT.inflate(vit, 2, FRAMES)
    assert not theirs & {tensor.data_ptr() for tensor in inflated.parameters()}


def test_drop_path_mode_and_type_are_taken_over(build) -> None:
    vit = build("vit_cls", wrapped=False, drop_path_rate=0.2, depth=3).train().double()
    inflated = TokenViT.inflate(vit)
    assert inflated.training and inflated.embed.proj.weight.dtype == torch.float64
    assert inflated.grid_size == (8, 4, 4)
    rates = [block.drop_path.prob for block in inflated.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2])


def altered(kind: str, **changes: Any) -> Any:
    """A model with one submodule or attribute replaced, `changes` by dotted names with `__`."""

    def make(build: Any) -> nn.Module:
        vit = build(kind, wrapped=False)
        for name, value in changes.items():
            owner, _, last = name.replace("__", ".").rpartition(".")
            setattr(vit.get_submodule(owner), last, value)
        return vit

    return make


def model(name: str, **arguments: Any) -> Any:
    tiny = {"depth": 2, "embed_dim": 64, "num_heads": 4, "num_classes": 0} | arguments
    return lambda build: timm.create_model(name, **tiny)


REFUSED = {
    "rotary": (model("eva02_tiny_patch14_224", img_size=28), "timm_vit=Eva: .*rotary positions"),
    "relative": (model("vit_relpos_small_patch16_224", img_size=32), "relative positions"),
    "beit": (model("beit_base_patch16_224", img_size=32), "relative positions"),
    "distilled": (model("deit_tiny_distilled_patch16_224", img_size=32), "a distillation token"),
    "naflex": (model("naflexvit_base_patch16_gap"), "sizes that vary within a batch"),
    "queries": (model("vit_tiny_patch16_224", qk_norm=True), r"blocks.0.attn.q_norm.weight"),
    "norm in front": (
        model("vit_base_patch16_clip_224", img_size=32, norm_layer=nn.LayerNorm),
        r"timm_vit.norm_pre: a norm with eps=1e-05",
    ),
    "clip": (model("vit_base_patch16_clip_224", img_size=32), "norm_pre"),
    "epsilon": (altered("vit_cls", norm=nn.LayerNorm(64)), r"timm_vit.norm: a norm with eps=1e-05"),
    "head": (
        model("vit_tiny_patch16_224", num_classes=3),
        "head.weight.*build it with num_classes=0",
    ),
    "pooled norm": (
        model("vit_tiny_patch16_224", global_pool="avg"),
        "fc_norm.weight.*build it with global_pool=''",
    ),
    "pool": (
        model("vit_base_patch16_siglip_224", img_size=32),
        "timm_vit.attn_pool: AttentionPoolLatent .*build it with global_pool=''",
    ),
    "post norm": (model("vit_base_patch16_rpn_224", img_size=32), "ResPostBlock"),
    "parallel": (model("vit_small_patch16_18x2_224", img_size=32), "ParallelThingsBlock"),
    "differential": (model("vit_dlittle_patch16_reg1_gap_256", img_size=32), "DiffAttention"),
    "swiglu": (model("vit_giant_patch14_dinov2", img_size=28, mlp_ratio=4.0), "blocks.0.mlp: "),
    "quick gelu": (
        model("vit_tiny_patch16_224", act_layer="quick_gelu"),
        "blocks.0.mlp.act: QuickGELU",
    ),
    "tanh": (model("vit_tiny_patch16_224", act_layer="gelu_tanh"), "blocks.0.mlp.act: GELUTanh"),
    "stem": (model("vit_tiny_r_s16_p8_224", img_size=64), "patch_embed: HybridEmbed"),
    "dropout": (
        model("vit_tiny_patch16_224", pos_drop_rate=0.1),
        "timm_vit.pos_drop: a dropout of 0.1 .*set it to 0",
    ),
    "patch drop": (model("vit_tiny_patch16_224", patch_drop_rate=0.1), "patch_drop: PatchDropout"),
    "overlap": (
        altered("vit_cls", patch_embed__proj=nn.Conv2d(3, 64, 16, 8)),
        "patch_embed.proj: a convolution of patches that overlap",
    ),
    "wrapped": (lambda build: build("vit_cls"), "timm_vit=MaskedViT: .*hand over its backbone"),
    "own scale": (altered("vit_cls", blocks__0__attn__scale=1.0), "attention with a scale of 1"),
    "nothing": (lambda build: None, "timm_vit=NoneType: must be a plain VisionTransformer"),
}


@pytest.mark.no_hook
@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_carried_over_is_named(kind, build) -> None:
    """Trap: weights that are lost in silence."""
    make, text = REFUSED[kind]
    with pytest.raises(UnsupportedBackboneError, match=text):
        TokenViT.inflate(make(build))


def test_rates_that_are_not_linear_are_refused(build) -> None:
    vit = build("vit_cls", wrapped=False, drop_path_rate=0.2, depth=3)
    vit.blocks[1].drop_path2.drop_prob = 0.7
    with pytest.raises(UnsupportedBackboneError, match=r"drop path rates .* do not rise linearly"):
        TokenViT.inflate(vit)


def test_frames_that_tubelets_do_not_divide_are_refused(build) -> None:
    with pytest.raises(ValueError, match=r"num_frames=7: must be a multiple of tubelet_size=2"):
        TokenViT.inflate(build("vit_cls", wrapped=False), 2, 7)


def test_masked_vit_names_the_way_to_clips(build) -> None:
    vit = build("vit_cls", wrapped=False)
    vit.patch_embed.proj = nn.Conv3d(3, 64, (2, 16, 16), (2, 16, 16))
    for mode in ("drop", "replace"):
        with pytest.raises(
            UnsupportedBackboneError, match=r"Conv3d.*TokenViT\.inflate\(timm_vit\)"
        ):
            MaskedViT(vit, mask_mode=mode)
