"""`set_image_size`: another resolution in mid-training, without losing parameters or state."""

import re
import warnings

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from jepakit import EMATeacher, MaskedViT, TokenSet, put_tokens
from jepakit.optim import param_groups, set_image_size

TINY = {"num_classes": 0, "img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 2}
SWIN = {"num_classes": 0, "img_size": 32, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2),
        "window_size": 2}  # fmt: skip
# Name, arguments, mask mode, and the parameters that a size replaces.
MODELS = {
    "vit": ("vit_tiny_patch16_224", TINY, "drop", r"backbone\.pos_embed"),
    "eva02": ("eva02_tiny_patch14_224", TINY | {"patch_size": 16}, "drop", r"backbone\.pos_embed"),
    "beit": ("beit_base_patch16_224", TINY, "drop", r".*relative_position_bias_table"),
    "swin": ("swin_tiny_patch4_window7_224", SWIN, "replace", r".*relative_position_bias_table"),
}


def build(kind: str) -> tuple[MaskedViT, EMATeacher, torch.optim.Optimizer]:
    """An encoder after three steps, its teacher and its optimiser."""
    torch.manual_seed(0)
    name, arguments, mode, _ = MODELS[kind]
    encoder = MaskedViT(timm.create_model(name, **arguments), mask_mode=mode).train()
    teacher = EMATeacher(encoder, 0.5)
    optimizer = torch.optim.AdamW(param_groups(encoder, 0.05), lr=1e-2)
    for _ in range(3):
        step(encoder, teacher, optimizer)
    return encoder, teacher, optimizer


def step(encoder: MaskedViT, teacher: EMATeacher, optimizer: torch.optim.Optimizer) -> float:
    height, width = encoder.backbone.patch_embed.img_size
    images = torch.randn(4, 3, height, width)
    loss = (encoder(images) - torch.randn(4, 1, encoder.embed_dim)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    teacher.update(encoder)
    return loss.item()


@pytest.mark.filterwarnings("ignore")  # timm's, while it resizes its tables
@pytest.mark.parametrize("kind", MODELS)
def test_only_what_changes_its_shape_is_replaced(kind) -> None:
    """Trap: the new positions are in no optimiser, and stay as they are for ever."""
    encoder, teacher, optimizer = build(kind)
    if not hasattr(encoder.backbone, "set_input_size"):
        pytest.skip(f"timm {timm.__version__} cannot resize a {type(encoder.backbone).__name__}")
    before = dict(encoder.named_parameters())
    states = {p: dict(optimizer.state[p]) for p in before.values() if p in optimizer.state}
    groups = [{**group, "params": list(group["params"])} for group in optimizer.param_groups]
    replaced = set_image_size(encoder, (64, 32), optimizer=optimizer, teacher=teacher)
    assert replaced and all(re.fullmatch(MODELS[kind][3], name) for name in replaced)
    assert encoder.grid_size == teacher.module.grid_size
    assert encoder.grid_size[0] == 2 * encoder.grid_size[1]

    after = dict(encoder.named_parameters())
    assert [name for name in before if after[name] is not before[name]] == replaced
    names = {id(parameter): name for name, parameter in before.items()}
    for group, old in zip(optimizer.param_groups, groups, strict=True):
        expected = [after[names[id(parameter)]] for parameter in old.pop("params")]
        assert all(a is b for a, b in zip(group["params"], expected, strict=True))
        assert {key: value for key, value in group.items() if key != "params"} == old
    kept = {p: state for p, state in states.items() if names[id(p)] not in replaced}
    assert set(optimizer.state) == set(kept)
    for parameter, state in kept.items():
        assert all(optimizer.state[parameter][key] is value for key, value in state.items())

    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    values = {name: after[name].detach().clone() for name in replaced}
    averages = {name: teacher.module.get_parameter(name).clone() for name in replaced}
    assert torch.isfinite(torch.tensor(step(encoder, teacher, optimizer)))
    for name in replaced:
        moved = (after[name] - values[name]).abs().max()
        assert moved > 1e-4, f"{name} is not trained"
        expected = 0.5 * (averages[name] + after[name])
        torch.testing.assert_close(teacher.module.get_parameter(name), expected)


def test_the_teacher_keeps_its_averages() -> None:
    """Interpolated from its own values, not from the student's."""
    encoder, teacher, optimizer = build("vit")
    old = teacher.module.backbone.pos_embed.clone()
    assert not torch.allclose(old, encoder.backbone.pos_embed)
    set_image_size(encoder, 64, optimizer=optimizer, teacher=teacher)
    expected = resample_abs_pos_embed(old, [4, 4], [2, 2], num_prefix_tokens=1)
    torch.testing.assert_close(teacher.module.backbone.pos_embed, expected)


def test_an_optimizer_of_other_parameters_is_noticed() -> None:
    """Trap: with one optimiser for matrices and one for the rest, the wrong one is given, and the
    new positions are in neither."""
    encoder, *_ = build("vit")
    matrices = torch.optim.SGD([p for p in encoder.parameters() if p.dim() == 2], lr=0.1)
    with pytest.warns(UserWarning, match=r"optimizer: has none of \['backbone.pos_embed'\]"):
        set_image_size(encoder, 64, optimizer=matrices)
    assert all(p.dim() == 2 for p in matrices.param_groups[0]["params"])
    encoder.backbone.pos_embed.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        set_image_size(encoder, 32, optimizer=matrices)


def test_what_stays(process_group) -> None:
    encoder, teacher, optimizer = build("vit")
    assert set_image_size(encoder, 32, optimizer=optimizer, teacher=teacher) == []
    encoder.backbone.pos_embed.requires_grad_(False)
    compiled = torch.compile(encoder, backend="eager")
    replaced = set_image_size(compiled, (32, 64), optimizer=None, teacher=None)
    assert replaced == ["backbone.pos_embed"]
    assert not encoder.backbone.pos_embed.requires_grad
    with pytest.raises(ValueError, match=r"student: backbone.pos_embed has shape \(1, 9, 48\)"):
        teacher.update(encoder)

    with pytest.raises(ValueError, match=r"image_size=\(40, 40\): must be multiples of .* \(16, 1"):
        set_image_size(encoder, 40, optimizer=None)
    naflex = timm.create_model("naflexvit_base_patch16_gap", num_classes=0, depth=1)
    with pytest.raises(TypeError, match="encoder: its NaFlexVit has no set_input_size"):
        set_image_size(MaskedViT(naflex), 64, optimizer=None)
    with pytest.raises(TypeError, match=r"encoder: must be a MaskedViT, got torch.*Linear"):
        set_image_size(nn.Linear(1, 1), 64, optimizer=None)
    with pytest.raises(ValueError, match="must not be in DistributedDataParallel"):
        set_image_size(DistributedDataParallel(build("vit")[0]), 64, optimizer=None)


def test_no_replacement_for_dynamic_sizes() -> None:
    """`dynamic_img_size=True`: features of two sizes are those of models built for them."""
    torch.manual_seed(0)
    name, arguments = "vit_tiny_patch16_224", TINY | {"img_size": 64}
    dynamic = MaskedViT(timm.create_model(name, dynamic_img_size=True, **arguments)).eval()
    for size in ((64, 64), (96, 48)):
        fixed = timm.create_model(name, **arguments).eval()
        fixed.load_state_dict(dynamic.backbone.state_dict())
        fixed.set_input_size(img_size=size)
        images, grid = torch.randn(2, 3, *size), dynamic.grid_size_of(size)
        assert grid == (size[0] // 16, size[1] // 16)
        with torch.no_grad():
            expected = fixed.forward_features(images)[:, 1:]
            torch.testing.assert_close(dynamic(images), expected, rtol=1e-4, atol=1e-4)
            some = TokenSet.from_mask(torch.rand(2, grid[0] * grid[1]) < 0.5, grid)
            mine, theirs = dynamic(images, some), MaskedViT(fixed)(images, some)
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
            assert put_tokens(mine, some).shape == expected.shape
