"""Saving in the published layout gives what was loaded, and the published code can load it."""

import pytest
import timm
import torch
from tests.interop import published
from tests.interop.conftest import ARGUMENTS, NAME, same, snapshot

from jepakit import EMATeacher, MaskedViT
from jepakit.interop import ijepa_checkpoint, load_ijepa, timm_state_dict

PARTS = ("encoder", "predictor", "target_encoder")


def test_loaded_and_saved_is_the_same_file(parts) -> None:
    """Names, shapes and every bit; the tables of the predictor to the rounding of their sines."""
    checkpoint = published.checkpoint()
    load_ijepa(checkpoint, **parts)
    saved = ijepa_checkpoint(**parts, epoch=7)
    assert saved.keys() == {*PARTS, "epoch"}
    assert saved["epoch"] == checkpoint["epoch"]
    table = "module.predictor_pos_embed"
    tables = saved["predictor"].pop(table), checkpoint["predictor"].pop(table)
    torch.testing.assert_close(*tables, rtol=0, atol=1e-6)
    for key in PARTS:
        assert same(saved[key], checkpoint[key])


@torch.no_grad()
def test_autocast_and_default_type_around_it_are_no_other_arithmetic(parts) -> None:
    """Trap: a sound block is refused, since it was compared in half precision."""
    for weight in parts["encoder"].parameters():
        if weight.dim() > 1:
            weight.mul_(4)
    for module in parts["encoder"].modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # rounds elsewhere
    parts["teacher"] = EMATeacher(parts["encoder"], 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        ijepa_checkpoint(**parts, epoch=0)
    torch.set_default_dtype(torch.float64)
    try:
        ijepa_checkpoint(**parts, epoch=0)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("position", ["sincos", "learned"])
@torch.no_grad()
def test_saved_and_loaded_computes_the_same(
    parts, build_encoder, build_predictor, images, ragged, tmp_path, position
) -> None:
    parts["predictor"] = build_predictor(position=position)
    torch.save(ijepa_checkpoint(**parts, epoch=3), tmp_path / "jepa.pth.tar")
    encoder = build_encoder()
    others = {
        "encoder": encoder,
        "predictor": build_predictor(position=position),
        "teacher": EMATeacher(encoder, 0.5),
    }
    load_ijepa(tmp_path / "jepa.pth.tar", **others, steps_per_epoch=2)
    assert others["teacher"].step == 6
    for name in ("encoder", "teacher"):
        torch.testing.assert_close(others[name](images), parts[name](images), rtol=0, atol=1e-5)
    context = parts["encoder"](images, ragged.context)
    outputs = [
        each["predictor"](context, ragged.context, ragged.targets) for each in (parts, others)
    ]
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_published_predictor_computes_the_same(parts, ragged) -> None:
    state = published.plain(ijepa_checkpoint(**parts, epoch=0)["predictor"])
    context = torch.randn(*ragged.context.shape, published.PREDICTOR["encoder_dim"])
    pred = parts["predictor"](context, ragged.context, ragged.targets)[0, 1]
    seen, asked = ragged.context.counts()[0], ragged.targets.counts()[0, 1]
    visible = ragged.context.idx[0, :seen].tolist()
    target = ragged.targets.idx[0, 1, :asked].tolist()
    expected = published.predict(state, context[0, :seen], visible, target)
    torch.testing.assert_close(pred[:asked], expected, rtol=1e-4, atol=1e-5)


def test_saved_tensors_stay_as_they_were(parts) -> None:
    """Trap: a checkpoint that is kept in memory and changes with the model."""
    saved = ijepa_checkpoint(**parts, epoch=0)
    with torch.no_grad():
        for part in parts.values():
            for parameter in part.parameters():
                parameter.zero_()
    for key in PARTS:
        assert saved[key]["module.mask_token" if key == "predictor" else "module.norm.weight"].any()
        assert all(tensor.is_contiguous() for tensor in saved[key].values())


def test_saving_changes_nothing(parts) -> None:
    before = snapshot(parts)
    ijepa_checkpoint(**parts, epoch=0)
    assert same(snapshot(parts), before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_token": True}, r"encoder: .* adds \['cls_token'\] \(0 missing, 1 extra\)"),
        ({"init_values": 0.1}, r"adds \['blocks.0.ls1.gamma', .* \(0 missing, 4 extra\)"),
        ({"qkv_bias": False}, r"lacks \['blocks.0.attn.qkv.bias', 'blocks.1.attn.qkv.bias'\]"),
        ({"img_size": (12, 6)}, r"encoder on the grid \(4, 2\): must be on a square grid"),
        ({"act_layer": "relu"}, "encoder: blocks.0.mlp.act is ReLU.*exact GELU"),
        ({"act_layer": "gelu_tanh"}, "encoder: blocks.0.mlp.act is .*exact GELU"),
    ],
)
def test_what_the_layout_has_no_place_for(parts, changes, message) -> None:
    """Trap: a file whose weights are all there and compute something else where they are read."""
    encoder = MaskedViT(timm.create_model(NAME, **(ARGUMENTS | changes)))
    with pytest.raises(ValueError, match=message):
        ijepa_checkpoint(encoder, parts["predictor"], parts["teacher"], epoch=0)
    with pytest.raises(ValueError, match=message.replace("encoder", "teacher")):
        ijepa_checkpoint(parts["encoder"], parts["predictor"], EMATeacher(encoder, 0.5), epoch=0)


def test_a_mask_token(parts) -> None:
    """Trap: an encoder that is saved without a weight that it needs."""
    encoder = MaskedViT(timm.create_model(NAME, **ARGUMENTS), mask_mode="replace")
    message = r"holds \['.*mask_token'\] beside its backbone; use mask_mode='drop'"
    with pytest.raises(ValueError, match=f"encoder: {message}"):
        ijepa_checkpoint(encoder, parts["predictor"], parts["teacher"], epoch=0)
    with pytest.raises(ValueError, match=f"teacher: {message}"):
        load_ijepa(published.checkpoint(), teacher=EMATeacher(encoder, 0.5))
    plain = timm.create_model(NAME, **ARGUMENTS)
    plain.load_state_dict(timm_state_dict(encoder))


def test_norms_with_another_epsilon(parts) -> None:
    parts["encoder"].backbone.blocks[1].norm2.eps = 1e-5
    with pytest.raises(ValueError, match=r"encoder: blocks.1.norm2 has eps=1e-05, .* with 1e-06"):
        ijepa_checkpoint(**parts, epoch=0)


def test_what_the_predictors_layout_has_no_place_for(parts, build_predictor) -> None:
    others = {
        r"position='rope' has no place in the published layout": {"position": "rope"},
        r"2 levels .* the published layout has one level and one width": {"num_levels": 2},
        r"num_mask_tokens=2; the published layout has one mask token": {"num_mask_tokens": 2},
        r"predictions of width 20 .* one level and one width": {"out_dim": 20},
        r"predictor on the grid \(4, 2\): must be on a square grid": {"grid_size": (4, 2)},
        r"predictor on the grid \(16,\): must be on a square grid": {"grid_size": (16,)},
        r"predictor on the grid \(2, 2, 2\): must be": {"grid_size": (2, 2, 2)},
    }
    for message, changes in others.items():
        parts["predictor"] = build_predictor(**changes)
        with pytest.raises(ValueError, match=message):
            ijepa_checkpoint(**parts, epoch=0)


@pytest.mark.parametrize("epoch", [-1, True, 1.0])
@pytest.mark.no_hook
def test_epoch_counts(parts, epoch) -> None:
    with pytest.raises((TypeError, ValueError), match="epoch="):
        ijepa_checkpoint(**parts, epoch=epoch)


def test_parts_of_another_class(parts) -> None:
    for name, kind in (
        ("encoder", "MaskedViT"), ("predictor", "MaskedPredictor"), ("teacher", "EMATeacher"),
    ):  # fmt: skip
        wrong = {**parts, name: torch.nn.Linear(2, 2)}
        with pytest.raises(TypeError, match=rf"{name}=torch.*Linear: must be the {kind}"):
            ijepa_checkpoint(**wrong, epoch=0)
    wrong = {**parts, "teacher": EMATeacher(parts["predictor"], 0.5)}
    with pytest.raises(TypeError, match=r"teacher.module=.*MaskedPredictor: must be the MaskedViT"):
        ijepa_checkpoint(**wrong, epoch=0)
