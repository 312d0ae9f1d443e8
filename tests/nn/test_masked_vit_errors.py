"""Bad input to `MaskedViT`: the text names the argument, the value and the rule."""

import re

import pytest
import torch

from jepakit import MaskedViT, Masks, TokenSet, UnsupportedBackboneError


@pytest.mark.parametrize("kind", ["vit_cls", "rope_gap_reg1"])
@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((0, 3, 64, 64), r"images \(0, 3, 64, 64\): the batch must not be empty"),
        ((2, 1, 64, 64), r"images \(2, 1, 64, 64\): must have the backbone's 3 channels$"),
        ((2, 64, 64, 3), r"the backbone's 3 channels; are they \[batch, height, width, chan"),
        (
            (2, 3, 48, 64),
            r"images of 48 x 64 pixels: must be 64 x 64, as the backbone was built; build it with "
            r"img_size=\(48, 64\)$",
        ),
        ((2, 3, 64, 63), r"images of 64 x 63 pixels: must be 64 x 64"),
    ],
)
def test_images(kind, shape, text, cached) -> None:
    encoder = cached(kind)
    for call in (
        encoder,
        encoder.extract_features,
        lambda x: encoder.forward_intermediates(x, [0]),
    ):
        with pytest.raises(ValueError, match=text):
            call(torch.zeros(shape))


@pytest.mark.parametrize("kind", ["vit_dynamic", "eva02_dynamic"])
def test_dynamic_size_off_the_patches(kind, cached) -> None:
    with pytest.raises(
        ValueError, match=r"images of 50 x 56 pixels: sides must be multiples of the patch size"
    ):
        cached(kind)(torch.zeros(2, 3, 50, 56))


@pytest.mark.no_hook
@pytest.mark.parametrize(
    ("images", "error", "text"),
    [
        (
            torch.zeros(2, 3, 64, 64, dtype=torch.uint8),
            TypeError,
            r"floating point, got torch.uint8; jepakit.data.PixelStatistics makes floats of stored",
        ),
        (
            torch.zeros(2, 3, 64, 64, dtype=torch.int64),
            TypeError,
            r"floating point, got torch.int64$",
        ),
        (
            torch.zeros(3, 64, 64),
            ValueError,
            r"\(3, 64, 64\): .*\[batch, channels, height, width\]",
        ),
        (torch.zeros(1, 2, 3, 64, 64), ValueError, r"images \(1, 2, 3, 64, 64\)"),
    ],
)
def test_images_of_another_kind(images, error, text, cached) -> None:
    with pytest.raises(error, match=text):
        cached("vit_cls")(images)


@pytest.mark.no_hook
@pytest.mark.parametrize(
    ("backbone", "kind"), [("vit_tiny_patch16_224", "str"), (None, "NoneType")]
)
def test_no_model(backbone, kind) -> None:
    text = rf"^backbone: must be a model, such as timm\.create_model\(.*\), got {kind}$"
    with pytest.raises(TypeError, match=text):
        MaskedViT(backbone)


def test_wrapped_twice(cached) -> None:
    with pytest.raises(UnsupportedBackboneError, match=r"backbone=MaskedViT: .* wrapped already$"):
        MaskedViT(cached("vit_cls"))


def test_context_on_another_grid(cached) -> None:
    """Trap: a 2 x 8 set has the positions of a 4 x 4 one, and means other places."""
    tokens = TokenSet.full((2, 8), (2,))
    text = r"context is on the grid \(2, 8\): must be on the images' grid \(4, 4\)"
    with pytest.raises(ValueError, match=text):
        cached("vit_cls")(torch.zeros(2, 3, 64, 64), tokens)
    with pytest.raises(ValueError, match=text):
        cached("vit_cls").forward_intermediates(torch.zeros(2, 3, 64, 64), [0], tokens)


def test_context_on_the_built_grid_of_a_dynamic_backbone(cached) -> None:
    """With dynamic sizes the images' grid counts, not the one that the backbone was built for."""
    encoder = cached("vit_dynamic")
    text = r"on the grid \(3, 3\): must be on the images' grid \(2, 4\)"
    with pytest.raises(ValueError, match=text):
        encoder(torch.zeros(2, 3, 32, 64), TokenSet.full(encoder.grid_size, (2,)))


@pytest.mark.parametrize("shape", [(3,), (1,), (2, 1), ()])
def test_context_of_another_batch(shape, cached) -> None:
    """Trap: a set for one sample, or several sets a sample, is not broadcast."""
    tokens = TokenSet.full((4, 4), shape)
    with pytest.raises(ValueError, match=r"context \(.*must be \[batch, n\] .* batch size 2"):
        cached("vit_cls")(torch.zeros(2, 3, 64, 64), tokens)


FULL = TokenSet.full((4, 4), (2,))


@pytest.mark.no_hook
@pytest.mark.parametrize(
    ("context", "got"),
    [
        (Masks(FULL, FULL[:, None]), "jepakit.tokens.masks.Masks"),
        (FULL.to_mask(), "torch.Tensor"),
        (FULL.idx, "torch.Tensor"),
    ],
)
def test_context_of_another_kind(context, got, cached) -> None:
    """Trap: all masks handed over, or a bool mask, where the context is meant."""
    text = (
        r"^context: must be a TokenSet, such as masks\.context or "
        rf"TokenSet\.from_mask\(mask, grid_size\), got {got}$"
    )
    encoder, images = cached("vit_cls"), torch.zeros(2, 3, 64, 64)
    with pytest.raises(TypeError, match=text):
        encoder(images, context)
    with pytest.raises(TypeError, match=text):
        encoder.forward_intermediates(images, [0], context)


@pytest.mark.no_hook
@pytest.mark.parametrize(
    ("layers", "text"),
    [
        (1, "layers=1: must be a sequence of ints, got int"),
        (None, "layers=None: must be a sequence of ints, got NoneType"),
        ({0, 1}, "layers={0, 1}: must be a sequence of ints, got set"),
        ("01", "layers='01': must be a sequence of ints, got str"),
        ([0.0, 1], "layers[0]=0.0: must be an int, got float"),
        ([0, "1"], "layers[1]='1': must be an int, got str"),
        ([True], "layers[0]=True: must be an int, got bool"),
    ],
)
def test_layers_of_another_kind(layers, text, cached) -> None:
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        cached("vit_cls").forward_intermediates(torch.zeros(2, 3, 64, 64), layers)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_images_must_be_finite_when_values_are_checked(value, cached, monkeypatch) -> None:
    images = torch.zeros(3, 3, 64, 64)
    images[1, 2, 5, 5] = value
    encoder = cached("vit_cls")
    monkeypatch.setattr("jepakit._checks.TYPECHECK", True)
    with pytest.raises(ValueError, match=r"images: must be finite, but 1 of 3 .*batch position 1"):
        encoder(images)
    monkeypatch.setattr("jepakit._checks.TYPECHECK", False)
    encoder(images)  # an ordinary run does not pay for the check
