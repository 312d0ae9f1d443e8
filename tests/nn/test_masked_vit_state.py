"""Wrapping a backbone changes neither weights, names nor behaviour; nothing is left behind."""

import copy
import pickle

import pytest
import timm
import torch

from jepakit import MaskedViT, TokenSet
from jepakit.nn import UnsupportedBackboneError


def half_context(encoder: MaskedViT, batch: int) -> TokenSet:
    mask = torch.zeros(batch, encoder.grid_size[0] * encoder.grid_size[1], dtype=torch.bool)
    mask[:, ::2] = True
    mask[0, 0] = False  # ragged
    return TokenSet.from_mask(mask, encoder.grid_size)


def test_weights_and_names_stay(any_kind, build) -> None:
    """Trap: re-initialising every Linear after `from pretrained`."""
    backbone = build(any_kind, wrapped=False)  # scrambled: a stand-in for pretrained weights
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    pointers = {name: p.data_ptr() for name, p in backbone.named_parameters()}
    flags = {name: p.requires_grad for name, p in backbone.named_parameters()}
    encoder = MaskedViT(backbone)
    assert encoder.backbone is backbone
    after = backbone.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert {name: p.data_ptr() for name, p in backbone.named_parameters()} == pointers
    assert {name: p.requires_grad for name, p in backbone.named_parameters()} == flags
    # The names are those of a backbone that was never wrapped, with one prefix.
    assert list(encoder.state_dict()) == [f"backbone.{name}" for name in before]


def test_plain_checkpoint_goes_both_ways(few_kind, build, images_for) -> None:
    encoder = build(few_kind)
    images = images_for(encoder, 2)
    other = build(few_kind)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert not torch.equal(other(images), encoder(images))
    other.backbone.load_state_dict(encoder.backbone.state_dict())
    assert torch.equal(other(images), encoder(images))


def test_the_backbone_still_classifies(build, images_for) -> None:
    encoder = build("vit_in21k_head")
    images = images_for(encoder, 2)
    bare = build("vit_in21k_head", wrapped=False)
    encoder(images, half_context(encoder, 2))
    logits = encoder.backbone(images)
    assert logits.shape == (2, 99)
    assert torch.equal(logits, bare(images))


def test_wrapping_twice(few_kind, build, images_for) -> None:
    encoder = build(few_kind)
    images, context = images_for(encoder, 2), half_context(encoder, 2)
    expected = encoder(images, context)
    again = MaskedViT(encoder.backbone)
    assert torch.equal(again(images, context), expected)
    assert torch.equal(encoder(images, context), expected)
    assert torch.equal(encoder(images), again(images))


def test_attributes(any_kind, cached) -> None:
    encoder = cached(any_kind)
    backbone = encoder.backbone
    rows, columns = encoder.grid_size
    if hasattr(backbone, "embeds"):
        assert (rows, columns) == backbone.embeds.pos_embed_grid_size
        backbone = backbone.embeds
    else:
        assert rows * columns == backbone.patch_embed.num_patches
        height, width = backbone.patch_embed.img_size
        if not any_kind.startswith("hybrid"):
            patch = backbone.patch_embed.patch_size
            assert (rows, columns) == (height // patch[0], width // patch[1])
    assert encoder.embed_dim == 64
    expected = sum(
        0 if token is None else token.shape[1]
        for token in (getattr(backbone, f"{name}_token", None) for name in ("cls", "reg", "dist"))
    )
    assert encoder.num_prefix_tokens == expected


def test_state_dict_round_trip(few_kind, build, images_for, tmp_path) -> None:
    encoder = build(few_kind)
    torch.save(encoder.state_dict(), tmp_path / "encoder.pt")
    other = build(few_kind)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(torch.load(tmp_path / "encoder.pt", weights_only=True))
    images, context = images_for(encoder, 2), half_context(encoder, 2)
    assert torch.equal(other(images, context), encoder(images, context))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_independent(few_kind, build, images_for, duplicate) -> None:
    encoder = build(few_kind)
    images, context = images_for(encoder, 2), half_context(encoder, 2)
    expected = encoder(images, context)
    other = duplicate(encoder)
    assert torch.equal(other(images, context), expected)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    assert torch.equal(other(images, context), expected)


def test_training_mode_trains(few_kind, build, images_for) -> None:
    """Dropping is the context's, in training and in evaluation; drop-path stays timm's own."""
    encoder = build(few_kind)
    images, context = images_for(encoder, 2), half_context(encoder, 2)
    expected = encoder(images, context)
    assert torch.equal(encoder.train()(images, context), expected)
    dropping = build(few_kind, drop_path_rate=0.5).train()
    images, context = images_for(encoder, 16), half_context(encoder, 16)
    assert not torch.equal(dropping(images, context), dropping(images, context))


def test_every_parameter_of_the_features_learns(any_kind, build, images_for) -> None:
    """An unused parameter stops DDP. Only the backbone's own head and pooling stand aside."""
    encoder = build(any_kind).train()
    encoder(images_for(encoder, 2), half_context(encoder, 2)).square().sum().backward()
    unused = {n.split(".")[1] for n, p in encoder.named_parameters() if p.grad is None}
    assert unused <= {"head", "head_dist", "fc_norm", "attn_pool"}


def test_gradient_checkpointing(few_kind, build, images_for, assert_close) -> None:
    """timm recomputes blocks in the backward pass, after the context is gone."""
    encoder = build(few_kind).train()
    images = images_for(encoder, 2)
    runs: list[None] = []
    encoder.backbone.blocks[0].register_forward_pre_hook(lambda *_: runs.append(None))
    half = TokenSet.full(encoder.grid_size, (2,)).idx % 2 == 0
    for context in (None, TokenSet.from_mask(half, encoder.grid_size)):
        gradients = []
        for on in (False, True):
            encoder.backbone.set_grad_checkpointing(on)
            encoder.zero_grad()
            runs.clear()
            encoder(images, context).square().sum().backward()
            assert len(runs) == 1 + on, "computed again in the backward pass, or not"
            gradients.append(next(encoder.backbone.blocks[0].mlp.parameters()).grad.clone())
        assert_close(gradients[1], gradients[0])


def test_gradient_checkpointing_of_padded_contexts(
    few_kind, build, images_for, ragged, assert_close
) -> None:
    """Trap: an option that is ignored; timm's plain transformer drops it where a mask comes in."""
    _check_gradients_of_padded_contexts(build(few_kind), images_for, ragged, assert_close)


@pytest.mark.slow
def test_gradient_checkpointing_of_any_backbone(
    any_kind, build, images_for, ragged, assert_close
) -> None:
    _check_gradients_of_padded_contexts(build(any_kind), images_for, ragged, assert_close)


def _check_gradients_of_padded_contexts(encoder, images_for, ragged, assert_close) -> None:
    images, tokens = images_for(encoder, 3), ragged(encoder.grid_size, 3, at_least=1)
    runs: list[None] = []
    encoder.backbone.blocks[0].register_forward_pre_hook(lambda *_: runs.append(None))
    gradients = []
    for enable in (False, True):
        encoder.train().set_grad_checkpointing(enable)
        encoder.zero_grad()
        runs.clear()
        torch.manual_seed(0)  # for models that drop something while they train
        encoder(images, tokens).square().sum().backward()
        assert len(runs) == 1 + enable, "computed again in the backward pass, or not"
        gradients.append([p.grad for p in encoder.parameters() if p.grad is not None])
    for expected, gradient in zip(*gradients, strict=True):
        assert_close(gradient, expected)


def test_a_backbone_without_checkpointing_says_so(cached) -> None:
    encoder = copy.deepcopy(cached("vit_cls"))
    encoder.backbone.__class__ = type(
        "Plain", (type(encoder.backbone),), {"set_grad_checkpointing": property()}
    )
    with pytest.raises(UnsupportedBackboneError, match=r"^backbone=Plain: lacks set_grad_checkp"):
        encoder.set_grad_checkpointing()


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def test_a_backbone_that_drops_patches_itself_raises(name) -> None:
    backbone = timm.create_model(name, depth=1, num_classes=0, patch_drop_rate=0.5)
    with pytest.raises(ValueError, match=r"backbone.patch_drop=PatchDropout.*patch_drop_rate=0"):
        MaskedViT(backbone)


@pytest.mark.parametrize(
    ("name", "lacks", "nearest"),
    [
        ("test_resnet", "patch_embed", "vit_small_patch16_224"),
        ("test_convnext", "patch_embed", "vit_small_patch16_224"),
        ("swin_tiny_patch4_window7_224", "patch_drop", "mask_mode='replace'"),
        ("cait_xxs24_224", "patch_drop", "mask_mode='replace'"),
        ("naflexvit_rope", "positions that are added", "vit_small_patch16_224"),
        ("beit_both", "a relative-position bias that is either shared", "mask_mode='replace'"),
        ("features_only", "patch_embed", "without features_only"),
        ("own_attention", "attention of timm's own classes, but has Own", "mask_mode='replace'"),
    ],
)
def test_other_models_raise_by_name(name, lacks, nearest) -> None:
    """Trap: models that take no key mask or ignore `patch_drop` must not run unmasked."""
    special = {
        "naflexvit_rope": ("naflexvit_base_patch16_gap", {"depth": 1, "rope_type": "axial"}),
        "beit_both": ("beit_base_patch16_224", {"depth": 1, "use_shared_rel_pos_bias": True}),
        "own_attention": ("beit_base_patch16_224", {"depth": 1}),
        "features_only": ("vit_tiny_patch16_224", {"features_only": True}),
    }
    name, arguments = special.get(name, (name, {}))
    backbone = timm.create_model(name, **arguments)
    if lacks.startswith("attention"):
        attention = backbone.blocks[0].attn
        attention.__class__ = type("Own", (type(attention),), {})
    expected = f"backbone={type(backbone).__name__}: patches cannot be dropped from it, it lacks "
    with pytest.raises(UnsupportedBackboneError, match=f"^{expected}{lacks}.*{nearest}"):
        MaskedViT(backbone)


@pytest.mark.filterwarnings("ignore")  # timm's, while it resizes its tables
@pytest.mark.parametrize("kind", ["beit", "relpos", "relpos_shared", "vit_cls"])
def test_a_size_set_later(kind, build) -> None:
    """timm's `set_input_size` goes on working, and the grid follows."""
    encoder = build(kind)
    if not hasattr(encoder.backbone, "set_input_size"):
        pytest.skip("this version of timm has no set_input_size for it")
    encoder.backbone.set_input_size(img_size=(32, 48))
    assert encoder.grid_size == (2, 3)
    context = half_context(encoder, 2)
    assert encoder(torch.randn(2, 3, 32, 48), context).shape == (*context.shape, 64)


def test_another_backbone_put_in_its_place_raises(build, images_for) -> None:
    """Trap: the new backbone would be trained and the old one run."""
    encoder = build("vit_cls")
    encoder.backbone = build("vit_cls", wrapped=False)
    with pytest.raises(RuntimeError, match=r"encoder.backbone: must be the one that was wrapped"):
        encoder(images_for(encoder, 1))
