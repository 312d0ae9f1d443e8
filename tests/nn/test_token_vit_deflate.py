"""`TokenViT.deflate`: an encoder of clips becomes an image model; all, or an error."""

import pytest
import timm
import torch
from einops import repeat
from torch import nn

from jepakit import MaskedViT, TokenSet
from jepakit.nn import Patches, TokenViT, Tubelets
from jepakit.testing import assert_encoder_contract


def clip_encoder(**changes) -> TokenViT:
    """3 steps of 2 x 3 patches that are no squares; weights of a size that shows errors."""
    torch.manual_seed(0)
    options = {"position": "learned", "mlp_ratio": 2.5} | changes
    embed = options.pop("embed", Tubelets((2, 8, 4), 32, in_channels=1))
    encoder = TokenViT((3, 2, 3), 32, depth=2, num_heads=4, embed=embed, **options)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    return encoder.eval()


@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"position": "sincos"},
        {"num_registers": 3},
        {"layer_scale": 0.5, "drop_path": 0.2, "position": "sincos", "num_registers": 1},
    ],
)
def test_an_image_has_the_features_of_a_still_tubelet(changes, step, assert_close) -> None:
    """As a context of one step alone, in values and gradients of the image.

    Trap: a kernel that is averaged over its frames, and positions of another step.
    """
    encoder = clip_encoder(**changes)
    vit = encoder.deflate(step)
    images = torch.randn(2, 1, 16, 12, requires_grad=True)
    mask = torch.zeros(2, 3, 6, dtype=torch.bool)
    mask[:, step] = True
    context = TokenSet.from_mask(mask.flatten(1), (3, 2, 3))
    of_clip = encoder(repeat(images, "b c h w -> b c t h w", t=6), context)
    features = vit.forward_features(images)
    assert vit.num_prefix_tokens == encoder.num_prefix_tokens
    of_image = features[:, vit.num_prefix_tokens :]
    assert_close(of_image, of_clip)
    weights = torch.randn_like(of_clip)
    gradients = [torch.autograd.grad((x * weights).sum(), images)[0] for x in (of_image, of_clip)]
    assert_close(*gradients)


@pytest.mark.parametrize("kind", ["gap_no_cls", "vit_nonsquare_patch", "dinov2", "dinov2_reg4"])
def test_inflate_and_back_is_the_image_model(kind, build, images_for, assert_close) -> None:
    """Bit for bit in the weights of blocks; class and register tokens are registers then."""
    encoder = build(kind)
    vit, images = encoder.backbone, images_for(encoder, 2)
    back = TokenViT.inflate(vit, 2, 6).deflate(1)
    assert_close(
        back.forward_features(images)[:, back.num_prefix_tokens :],
        vit.forward_features(images)[:, vit.num_prefix_tokens :],
    )
    theirs = dict(vit.named_parameters())
    kept = [name for name in dict(back.named_parameters()) if name.startswith(("blocks", "norm"))]
    assert len(kept) > 20 or len(vit.blocks) < 2
    state = back.state_dict()
    for name in kept:
        if name in theirs:
            assert torch.equal(state[name], theirs[name]), name
    # Halves and their sum are exact.
    assert torch.equal(state["patch_embed.proj.weight"], theirs["patch_embed.proj.weight"])


def test_and_forth_again_is_the_encoder() -> None:
    """Of one frame a tubelet and one step, inflating undoes deflating bit for bit."""
    embed = Tubelets((1, 8, 8), 32)
    encoder = TokenViT((1, 2, 2), 32, 2, 4, embed=embed, position="learned", drop_path=0.1)
    nn.init.normal_(encoder.position_table)
    again = TokenViT.inflate(encoder.deflate(), 1, 1)
    assert again.training
    state = again.state_dict()
    assert state.keys() == encoder.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in encoder.state_dict().items())
    assert [block.drop_path.prob for block in again.blocks] == pytest.approx([0, 0.1])


def test_it_is_a_backbone_and_a_copy() -> None:
    encoder = clip_encoder(num_registers=2).double().train()
    vit = encoder.deflate()
    assert vit.training and vit.patch_embed.proj.weight.dtype == torch.float64
    ours = {tensor.data_ptr() for tensor in encoder.parameters()}
    assert not ours & {tensor.data_ptr() for tensor in vit.parameters()}
    assert_encoder_contract(MaskedViT(vit.float().eval()), torch.randn(3, 1, 16, 12))


def test_wrapped_blocks_keep_their_weights() -> None:
    """Trap: names of wrappers, which nothing matches."""
    encoder = clip_encoder()
    expected = encoder.deflate().state_dict()
    encoder.blocks[1] = torch.compile(encoder.blocks[1])
    state = encoder.deflate().state_dict()
    assert all(torch.equal(state[name], value) for name, value in expected.items())


@pytest.mark.no_hook
def test_what_cannot_be_carried_over_is_named() -> None:
    for position in ("rope", "rope-vjepa2"):
        wide = Tubelets((2, 8, 4), 96, in_channels=1)
        encoder = TokenViT((3, 2, 3), 96, 1, 4, embed=wide, position=position)
        with pytest.raises(ValueError, match=f"position='{position}': rotary positions cannot"):
            encoder.deflate()
    images = TokenViT((2, 2), 32, 1, 4, embed=Patches(8, 32), position="sincos")
    with pytest.raises(ValueError, match="embed=Patches: must be Tubelets"):
        images.deflate()
    with pytest.raises(ValueError, match="step=3: must be below the 3 steps"):
        clip_encoder().deflate(3)
    with pytest.raises(ValueError, match="step=-1: must be at least 0"):
        clip_encoder().deflate(-1)


def test_timm_loads_the_weights() -> None:
    """A state dict of timm's own names, for a model of its own."""
    state = clip_encoder().deflate().state_dict()
    vit = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, in_chans=1, img_size=(16, 12), patch_size=(8, 4),
        embed_dim=32, depth=2, num_heads=4, mlp_ratio=2.5, class_token=False, global_pool="",
    )  # fmt: skip
    assert vit.load_state_dict(state).missing_keys == []
