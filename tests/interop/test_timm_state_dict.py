"""To timm and back: the same names, without wrappers, and the same features."""

import pytest
import timm
import torch
from tests.interop import published
from tests.interop.conftest import ARGUMENTS, NAME, same, scramble
from torch.nn.parallel import DistributedDataParallel

from jepakit import EMATeacher, MaskedViT
from jepakit.interop import load_ijepa, timm_state_dict

NAMES = [
    "vit_huge_patch14_gap_224.in1k_ijepa",
    "vit_huge_patch14_gap_224.in22k_ijepa",
    "vit_huge_patch16_gap_448.in1k_ijepa",
    "vit_giant_patch16_gap_224.in22k_ijepa",
]


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_timm_reads_the_same_published_file(tmp_path, images, name) -> None:
    """timm's own reader of I-JEPA's files and `load_ijepa` give the same encoder."""
    path = tmp_path / "jepa.pth.tar"
    torch.save(published.checkpoint(), path)
    arguments = ARGUMENTS | {"mlp_ratio": 4}
    backbone = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay={"file": str(path)}, **arguments
    ).eval()
    encoder = MaskedViT(timm.create_model(name, **arguments)).eval()
    load_ijepa(path, encoder=encoder)
    assert same(timm_state_dict(encoder), backbone.state_dict())
    torch.testing.assert_close(encoder(images), backbone.forward_features(images))


@pytest.mark.parametrize("teacher", [False, True])
@torch.no_grad()
def test_timm_loads_what_is_saved(parts, images, tmp_path, teacher) -> None:
    module = parts["teacher" if teacher else "encoder"]
    torch.save(timm_state_dict(module), tmp_path / "model.pth")
    model = timm.create_model(NAME, checkpoint_path=tmp_path / "model.pth", **ARGUMENTS).eval()
    torch.testing.assert_close(model.forward_features(images), module(images))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 1}),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 28, "depth": 1}),
        ("eva02_tiny_patch14_224", {"img_size": 28, "depth": 1}),
        ("beit_base_patch16_224", {"img_size": 32, "depth": 1}),
        ("vit_relpos_small_patch16_224", {"img_size": 32, "depth": 1}),
        ("naflexvit_base_patch16_gap", {"depth": 1}),
    ],
)
def test_any_backbone(name, arguments) -> None:
    backbone = timm.create_model(name, **arguments)
    encoder = MaskedViT(backbone)
    saved = timm_state_dict(encoder)
    fresh = timm.create_model(name, **arguments)
    fresh.load_state_dict(saved)
    assert same(fresh.state_dict(), backbone.state_dict())
    assert same(timm_state_dict(EMATeacher(encoder, 0.5)), saved)


def test_saved_tensors_stay_as_they_were(parts) -> None:
    """Trap: weights that are kept in memory and change with the model."""
    saved = timm_state_dict(parts["encoder"])
    kept = {name: tensor.clone() for name, tensor in saved.items()}
    scramble(parts["encoder"])
    assert same(saved, kept)
    assert not any(tensor.requires_grad for tensor in saved.values())


def test_wrappers_leave_no_trace(parts, process_group) -> None:
    """Trap: `module.` and `_orig_mod.` in the names of a saved file."""
    encoder = parts["encoder"]
    plain = timm_state_dict(encoder)
    wrapped = torch.compile(DistributedDataParallel(encoder), backend="eager")
    assert same(timm_state_dict(wrapped), plain)
    teacher = torch.compile(EMATeacher(wrapped, 0.5), backend="eager")
    assert same(timm_state_dict(teacher), plain)
    encoder.backbone.blocks[0] = torch.compile(encoder.backbone.blocks[0], backend="eager")
    encoder.backbone = torch.compile(encoder.backbone, backend="eager")
    assert same(timm_state_dict(encoder), plain)


def test_another_class() -> None:
    with pytest.raises(TypeError, match=r"model=torch.*Linear: must be the MaskedViT"):
        timm_state_dict(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"model.module=torch.*Linear: must be the MaskedViT"):
        timm_state_dict(EMATeacher(torch.nn.Linear(2, 2), 0.5))
