"""Law 9: `EMATeacher` is the student at step 0 and its average later."""

from fractions import Fraction

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.teacher.students import assert_same, perturb, student, tensors
from torch import Tensor, nn

from jepakit import EMATeacher, MaskedViT, constant, cosine, linear


def test_starts_as_an_exact_copy() -> None:
    module = student()
    before = tensors(module)
    teacher = EMATeacher(module, 0.99)
    assert_same(tensors(teacher.module), before)
    assert_same(tensors(module), before)
    ours, theirs = tensors_in_place(teacher.module), tensors_in_place(module)
    assert not {t.data_ptr() for t in ours} & {t.data_ptr() for t in theirs}
    assert all(parameter.requires_grad for parameter in module.parameters())


def tensors_in_place(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_pretrained_weights_survive(name) -> None:
    """Trap: re-initialising every Linear after `from pretrained`, or after the copy was made."""
    backbone = timm.create_model(
        name, img_size=32, depth=2, embed_dim=64, num_heads=4, num_classes=0
    )
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.normal_()  # a stand-in for downloaded weights
    weights = {key: value.clone() for key, value in backbone.state_dict().items()}
    encoder = MaskedViT(backbone)
    teacher = EMATeacher(encoder, 0.99)
    for holder in (backbone, encoder.backbone, teacher.module.backbone):
        assert_same(holder.state_dict(), weights)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(teacher(images), encoder.eval()(images))


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 6),
    st.one_of(
        st.floats(0, 1),
        st.builds(linear, st.floats(0, 1), st.floats(0, 1), steps=st.integers(0, 8)),
        st.builds(cosine, st.floats(0, 1), st.floats(0, 1), steps=st.integers(0, 8)),
        st.builds(constant, st.floats(0, 1)),
    ),
)
def test_is_the_moving_average(seed, steps, momentum) -> None:
    """`update` uses `schedule(step)`, then counts. Trap: a schedule divided by 0 steps."""
    module = student(seed)
    teacher = EMATeacher(module, momentum)
    expected = {name: tensor.double() for name, tensor in tensors(module).items()}
    parameters = dict(module.named_parameters())
    for step in range(steps):
        perturb(module)
        m = momentum(step) if callable(momentum) else momentum
        assert teacher.step == step
        assert teacher.momentum == m
        teacher.update(module)
        for name, tensor in tensors(module).items():
            if m == 1:  # all of the teacher is frozen, buffers too
                continue
            if name in parameters:
                expected[name] = m * expected[name] + (1 - m) * tensor.double()
            else:
                expected[name] = tensor.double()
    assert teacher.step == steps
    for name, tensor in tensors(teacher.module).items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-5)


def test_momentum_1_freezes_and_0_copies() -> None:
    """Bit for bit, buffers included."""
    module = student()
    start = tensors(module)
    frozen, copied = EMATeacher(module, 1), EMATeacher(module, 0)
    for _ in range(3):
        perturb(module)
        frozen.update(module)
        copied.update(module)
    assert_same(tensors(copied.module), tensors(module))
    assert_same(tensors(frozen.module), start)


def test_buffers_are_copied_never_averaged() -> None:
    """Traps: Swin's integer relative position index averaged to zero; running statistics never
    copied; non-persistent buffers never refreshed."""
    module = student()
    teacher = EMATeacher(module, 0.9)
    for _ in range(3):
        perturb(module)
        module.train()(torch.randn(5, 3))  # moves the running statistics
        teacher.update(module)
        assert_same(dict(teacher.module.named_buffers()), dict(module.named_buffers()))
    assert teacher.module.index.tolist() == [11, 7, 9]
    assert teacher.module.norm.num_batches_tracked == module.norm.num_batches_tracked
    assert teacher.module.fleeting != 0.5


def test_swin_keeps_its_index() -> None:
    swin = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=24, depths=(1, 1, 1, 1))
    name = "layers.0.blocks.0.attn.relative_position_index"
    before = swin.get_buffer(name).clone()
    teacher = EMATeacher(swin, 0.996)
    teacher.update(swin)
    assert torch.equal(teacher.module.get_buffer(name), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_student_moves_a_float32_teacher(dtype) -> None:
    """Traps: a bfloat16 average at momentum 0.999 stands still; fused calls refuse mixed types."""
    module = nn.Linear(8, 8).to(dtype)
    teacher = EMATeacher(module, 0.999)
    start = module.weight.detach().float()
    assert torch.equal(teacher.module.weight, start)
    assert all(tensor.dtype == torch.float32 for tensor in tensors(teacher.module).values())
    with torch.no_grad():
        module.weight.add_(0.01)
    end = module.weight.detach().float()
    for _ in range(200):
        teacher.update(module)
    expected = start + (1 - 0.999**200) * (end - start)
    torch.testing.assert_close(teacher.module.weight, expected, rtol=0, atol=2e-6)
    assert module.weight.dtype == dtype


def test_other_types_stay() -> None:
    module = nn.Linear(4, 4).double()
    teacher = EMATeacher(module, 0.5)
    perturb(module)
    teacher.update(module)
    assert teacher.module.weight.dtype == torch.float64


def test_tied_parameters_stay_tied() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module[1].weight = module[0].weight
    teacher = EMATeacher(module, 0.5)
    before = module[0].weight.detach().clone()
    perturb(module)
    teacher.update(module)
    assert teacher.module[0].weight is teacher.module[1].weight
    torch.testing.assert_close(teacher.module[0].weight, (before + module[0].weight.detach()) / 2)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_parameters_are_averaged(dtype) -> None:
    """Trap: what is not floating is copied, so that momentum 1 does not freeze it."""
    module = nn.Module()
    module.spectrum = nn.Parameter(torch.randn(4, 3, dtype=dtype))
    module.weight = nn.Parameter(torch.randn(2))
    teachers = {momentum: EMATeacher(module, momentum) for momentum in (0, 0.25, 1)}
    before = tensors(module)
    perturb(module)
    now = tensors(module)
    for momentum, teacher in teachers.items():
        teacher.update(module)
        expected = {name: momentum * before[name] + (1 - momentum) * now[name] for name in now}
        torch.testing.assert_close(tensors(teacher.module), expected)
    assert_same(tensors(teachers[1].module), before)
    assert_same(tensors(teachers[0].module), now)


def test_eight_bit_parameters_are_raised() -> None:
    module = nn.Module()
    module.weight = nn.Parameter(torch.ones(3).to(torch.float8_e4m3fn), requires_grad=False)
    assert EMATeacher(module, 0.9).module.weight.dtype == torch.float32


@pytest.mark.parametrize("kind", [np.float32, np.float64, Fraction, np.int64, int])
def test_momentum_may_be_any_real_number(kind) -> None:
    """Trap: a schedule written with numpy gives numbers that are no float."""
    teacher = EMATeacher(student(), lambda step: kind(1))
    assert type(teacher.momentum) is float and teacher.momentum == 1
    assert "momentum=1.0, step=0" in repr(EMATeacher(student(), kind(1)))
    teacher.update(student(1))
    assert torch.equal(teacher.module.first.weight, student().first.weight)
