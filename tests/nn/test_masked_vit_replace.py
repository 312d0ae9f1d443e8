"""`MaskedViT(mask_mode="replace")`: mask tokens for backbones that need the whole grid."""

import copy
import pickle
import re
from functools import cache
from typing import Any

import pytest
import timm
import torch
from torch.nn import functional as F

from jepakit import EMATeacher, MaskedViT, MultiBlockMask, TokenSet, take_tokens
from jepakit.nn import UnsupportedBackboneError

SWIN = {
    "img_size": 64,
    "window_size": 2,
    "embed_dim": 32,
    "depths": (1, 1, 2),
    "num_heads": (1,) * 3,
}
# id: (timm's name, arguments, image size, grid of the last stage, patches under a cell)
MODELS: dict[str, tuple[str, dict[str, Any], tuple[int, int], tuple[int, int], int]] = {
    "swin": ("swin_tiny_patch4_window7_224", SWIN, (64, 64), (4, 4), 4),
    "swin_wide": (
        "swin_tiny_patch4_window7_224",
        SWIN | {"img_size": (32, 64)},
        (32, 64),
        (2, 4),
        4,
    ),
    "swin_v2": ("swinv2_tiny_window8_256", SWIN, (64, 64), (4, 4), 4),
    "hiera": (
        "hiera_tiny_224",
        {"img_size": (64, 96), "embed_dim": 32, "stages": (1, 1, 1, 1), "num_heads": 1},
        (64, 96),
        (2, 3),
        8,
    ),
    "nest": ("nest_tiny_jx", {"img_size": 64}, (64, 64), (4, 4), 4),
    "vit": ("vit_tiny_patch16_224", {"img_size": (48, 64), "depth": 2}, (48, 64), (3, 4), 1),
    "vit_dynamic": (
        "vit_tiny_patch16_224",
        {"img_size": 48, "depth": 2, "dynamic_img_size": True},
        (48, 48),
        (3, 3),
        1,
    ),
    "cait": ("cait_xxs24_224", {"img_size": 64, "depth": 2}, (64, 64), (4, 4), 1),
}


def build(kind: str) -> MaskedViT:
    torch.manual_seed(0)
    name, arguments, *_ = MODELS[kind]
    backbone = timm.create_model(name, num_classes=0, **arguments).eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return MaskedViT(backbone, mask_mode="replace").eval()


cached = cache(build)
every_kind = pytest.mark.parametrize("kind", MODELS)


def images_of(kind: str, batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, *MODELS[kind][2])


def some(grid_size: tuple[int, int], batch: int) -> TokenSet:
    size = grid_size[0] * grid_size[1]
    mask = torch.rand(batch, size).argsort(dim=1) < torch.arange(1, batch + 1)[:, None]
    return TokenSet.from_mask(mask, grid_size)


def pixels(kind: str, mask: torch.Tensor) -> torch.Tensor:
    (height, width), (rows, columns) = MODELS[kind][2:4]
    field = mask.view(-1, 1, rows, columns)
    return field.repeat_interleave(height // rows, 2).repeat_interleave(width // columns, 3)


def flat(features: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
    if features.dim() == 3:
        return features
    if features.shape[1:3] == grid_size:
        return features.flatten(1, 2)
    return features.flatten(2).transpose(1, 2)


@every_kind
def test_grid_is_that_of_the_last_stage(kind) -> None:
    encoder, grid = cached(kind), MODELS[kind][3]
    assert encoder.grid_size == grid
    out = encoder(images_of(kind, 2))
    assert out.shape == (2, grid[0] * grid[1], encoder.embed_dim)


@every_kind
def test_everything_visible_is_the_backbone(kind) -> None:
    encoder, images = cached(kind), images_of(kind, 2)
    with torch.no_grad():
        features = flat(encoder.backbone.forward_features(images), encoder.grid_size)
        expected = features[:, encoder.num_prefix_tokens :]
        torch.testing.assert_close(encoder(images), expected)
        everything = TokenSet.full(encoder.grid_size, (2,))
        torch.testing.assert_close(encoder(images, everything), expected)


@every_kind
def test_no_leak_and_visible_pixels_matter(kind) -> None:
    """Law 4, exactly: what stands under a hidden cell changes nothing, what is visible does.

    Only a stem of overlapping patches sees beyond them."""
    encoder, images = cached(kind), images_of(kind, 4)
    tokens = some(encoder.grid_size, 4)
    seen = pixels(kind, tokens.to_mask())
    # Hiera embeds patches of 4 x 4 pixels from 7 x 7.
    reach = 3 if kind == "hiera" else 0
    seen = F.max_pool2d(seen.float(), 2 * reach + 1, stride=1, padding=reach).bool()
    assert not seen.all()
    with torch.no_grad():
        out = encoder(images, tokens)
        other = torch.where(seen, images, 1e3 * torch.randn_like(images))
        assert torch.equal(encoder(other, tokens), out)
        other = torch.where(seen, images + 1, images)
        assert not torch.equal(encoder(other, tokens), out)


@pytest.mark.parametrize("kind", ["swin", "vit", "nest"])
def test_hidden_patches_are_the_mask_token(kind) -> None:
    """Trap: a mask on another grid than the tokens'. Hidden pixels that embed to the mask token
    give what replacing gives."""
    encoder, images = build(kind), images_of(kind, 2)
    tokens = some(encoder.grid_size, 2)
    cells = MODELS[kind][4]
    patches = ~tokens.to_mask().view(2, *encoder.grid_size)
    patches = patches.repeat_interleave(cells, 1).repeat_interleave(cells, 2)
    token = encoder.replacing.mask_token

    def replace(_module, _arguments, x):
        for sample, row, column in patches.nonzero().tolist():
            if x.dim() == 3:
                x[sample, row * patches.shape[2] + column] = token
            elif x.shape[1:3] == patches.shape[1:]:
                x[sample, row, column] = token
            else:
                x[sample, :, row, column] = token
        return x

    with torch.no_grad():
        out = encoder(images, tokens)
        handle = encoder.backbone.patch_embed.register_forward_hook(replace)
        features = flat(encoder.backbone.forward_features(images), encoder.grid_size)
        handle.remove()
    expected = take_tokens(features[:, encoder.num_prefix_tokens :], tokens)
    torch.testing.assert_close(out, expected)


@every_kind
def test_padding_is_zero_and_batches_do_not_matter(kind) -> None:
    encoder, images = cached(kind), images_of(kind, 4)
    tokens = some(encoder.grid_size, 4)
    with torch.no_grad():
        out = encoder(images, tokens)
        assert not out[~tokens.valid].any()
        for sample in range(4):
            one = TokenSet.from_mask(tokens.to_mask()[sample : sample + 1], encoder.grid_size)
            alone = encoder(images[sample : sample + 1], one)[0]
            torch.testing.assert_close(out[sample, : len(alone)], alone, rtol=1e-4, atol=1e-4)


@every_kind
def test_the_mask_token_learns(kind) -> None:
    encoder = build(kind).train()
    encoder(images_of(kind, 2), some(encoder.grid_size, 2)).square().sum().backward()
    gradient = encoder.replacing.mask_token.grad
    assert torch.isfinite(gradient).all() and gradient.any()
    assert encoder.replacing.mask_token.any()


@every_kind
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_use_their_own_mask_token(kind, duplicate) -> None:
    encoder, images = build(kind), images_of(kind, 2)
    tokens = some(encoder.grid_size, 2)
    other = duplicate(encoder)
    with torch.no_grad():
        expected = encoder(images, tokens)
        encoder.replacing.mask_token.add_(1.0)
        assert torch.equal(other(images, tokens), expected)
        assert not torch.equal(encoder(images, tokens), expected)


@pytest.mark.no_hook
@pytest.mark.parametrize("kind", ["swin", "hiera", "vit"])
def test_one_graph(kind) -> None:
    """Law 14. Trap: the hidden set becomes a constant of the graph, or costs a synchronisation."""
    encoder, images = build(kind), images_of(kind, 2)
    torch.compiler.reset()
    compiled = torch.compile(encoder, fullgraph=True, backend="eager")
    for seen in (some(encoder.grid_size, 2), some(encoder.grid_size, 2), None):
        assert torch.equal(compiled(images, seen), encoder(images, seen))


@pytest.mark.no_hook
@pytest.mark.parametrize("kind", ["swin", "hiera", "vit"])
def test_autocast(kind) -> None:
    encoder, images = build(kind), images_of(kind, 2)
    tokens = some(encoder.grid_size, 2)
    expected = encoder(images, tokens).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = encoder(images, tokens).float()
    assert torch.isfinite(out).all()
    assert (out - expected).abs().mean() < 0.05 * expected.abs().mean()
    out.square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)
    assert encoder.replacing.mask_token.grad.any()


def test_names_in_a_checkpoint() -> None:
    encoder = cached("swin")
    names = set(encoder.state_dict())
    assert names == {"replacing.mask_token"} | {
        f"backbone.{name}" for name in encoder.backbone.state_dict()
    }


def test_a_whole_step() -> None:
    """A Swin in the loop of the README: sampler, student, teacher."""
    encoder = build("swin")
    teacher = EMATeacher(encoder, momentum=0.9)
    masks = MultiBlockMask(encoder.grid_size, num_targets=1, min_context_coverage=0.25)(2)
    images = images_of("swin", 2)
    context = encoder.train()(images, masks.context)
    target = take_tokens(teacher(images), masks.targets)
    assert context.shape == (*masks.context.shape, encoder.embed_dim)
    assert target.shape == (*masks.targets.shape, encoder.embed_dim)
    teacher.update(encoder)


def test_intermediates() -> None:
    encoder, images = cached("swin"), images_of("swin", 2)
    with torch.no_grad():
        first, last = encoder.forward_intermediates(images, [0, 2])
        assert first.shape == (2, 16 * 16, 32) and last.shape == (2, 4 * 4, 128)
        tokens = some(encoder.grid_size, 2)
        (out,) = encoder.forward_intermediates(images, [-1], tokens)
        normed = encoder.backbone.norm(out).masked_fill(~tokens.valid[..., None], 0)
        torch.testing.assert_close(normed, encoder(images, tokens))
        with pytest.raises(ValueError, match=r"layer 0 is on \(16, 16\); leave the context out"):
            encoder.forward_intermediates(images, [0], tokens)


def test_other_sizes() -> None:
    encoder = cached("vit_dynamic")
    images = torch.randn(2, 3, 32, 80)
    tokens = TokenSet.full((2, 5), (2,))
    with torch.no_grad():
        assert torch.equal(encoder(images, tokens), encoder(images))
    with pytest.raises(ValueError, match=r"multiples of the backbone's stride \(16, 16\)"):
        encoder(torch.randn(2, 3, 40, 80))


def test_a_context_on_the_patches_raises() -> None:
    """Trap: a mask on the first stage's grid, which the last one cannot keep apart."""
    encoder = cached("swin")
    with pytest.raises(ValueError, match=r"on the grid \(16, 16\): must be on the images' grid"):
        encoder(images_of("swin", 2), TokenSet.full((16, 16), (2,)))


@pytest.mark.parametrize(
    ("name", "lacks"),
    [
        ("test_convnext", "patch_embed"),
        ("test_resnet", "patch_embed"),
        ("crossvit_tiny_240", "a patch_embed that returns one tensor of patches"),
        # Two class tokens and no patch come out.
        ("pit_ti_distilled_224", "patch tokens in forward_features"),
    ],
)
def test_what_has_no_patches_raises(name, lacks) -> None:
    backbone = timm.create_model(name, num_classes=0)
    start = (
        f"backbone={type(backbone).__name__}: hidden patches cannot be replaced in it, it lacks "
    )
    with pytest.raises(UnsupportedBackboneError, match=f"^{re.escape(start)}{lacks}.*swin_tiny"):
        MaskedViT(backbone, mask_mode="replace")


@pytest.mark.no_hook
def test_unknown_mode() -> None:
    backbone = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1)
    with pytest.raises(ValueError, match=r"mask_mode='zero': must be one of 'drop', 'replace'"):
        MaskedViT(backbone, mask_mode="zero")


def test_as_many_channels_as_cells() -> None:
    """Patches of shape [1, 16, 16, 16] can be read in two ways; the features tell which."""
    arguments = SWIN | {"embed_dim": 16}
    backbone = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, **arguments).eval()
    encoder = MaskedViT(backbone, mask_mode="replace")
    assert encoder.grid_size == (4, 4)
    tokens, images = some((4, 4), 2), torch.randn(2, 3, 64, 64)
    noise = torch.where(pixels("swin", tokens.to_mask()), images, torch.randn_like(images))
    with torch.no_grad():
        assert torch.equal(encoder(noise, tokens), encoder(images, tokens))


@pytest.mark.filterwarnings("ignore")  # timm's, while it resizes its tables
def test_a_size_set_later() -> None:
    encoder = build("swin")
    encoder.backbone.set_input_size(img_size=(32, 64))
    assert encoder.grid_size == (2, 4)
    assert encoder(torch.randn(1, 3, 32, 64)).shape == (1, 8, encoder.embed_dim)


def test_images_of_another_size() -> None:
    with pytest.raises(ValueError, match=r"32 x 64 pixels: must be 64 x 64, as the backbone was"):
        cached("nest")(torch.randn(1, 3, 32, 64))


def test_what_can_be_dropped_says_so() -> None:
    backbone = timm.create_model("naflexvit_base_patch16_gap", num_classes=0, depth=1)
    with pytest.raises(UnsupportedBackboneError, match="mask_mode='drop' takes it"):
        MaskedViT(backbone, mask_mode="replace")


@every_kind
def test_hidden_features_are_returned(kind) -> None:
    """All positions, in the order of the grid; what is visible is what `forward` returns."""
    encoder, images = cached(kind), images_of(kind, 3)
    tokens = some(encoder.grid_size, 3)
    with torch.no_grad():
        every = encoder(images, tokens, return_hidden=True)
        assert every.shape == (3, tokens.num_positions, encoder.embed_dim)
        assert torch.equal(take_tokens(every, tokens), encoder(images, tokens))
        # Hidden positions have features of their own, and no pixels of their own.
        hidden = tokens.complement()
        assert take_tokens(every, hidden)[hidden.valid].abs().min(dim=0).values.max() > 0
        if kind != "hiera":
            seen = pixels(kind, tokens.to_mask()).bool()
            other = torch.where(seen, images, torch.randn_like(images))
            assert torch.equal(encoder(other, tokens, return_hidden=True), every)


def test_hidden_features_where_there_are_none() -> None:
    """Law 12: the argument has an effect, or raises."""
    encoder, images = cached("vit"), images_of("vit", 1)
    with pytest.raises(ValueError, match=r"return_hidden=True: must come with .* and no context"):
        encoder(images, return_hidden=True)
    dropping = MaskedViT(encoder.backbone)
    with pytest.raises(ValueError, match=r"return_hidden=True: .* got mask_mode='drop' and a cont"):
        dropping(images, some((3, 4), 1), return_hidden=True)
