"""Law 9: a teacher never gets a gradient and is always in eval mode."""

import timm
import torch
from tests.teacher.students import student
from torch import Tensor, nn

from jepakit import EMATeacher, MaskedViT


def test_never_a_gradient() -> None:
    module = student()
    teacher = EMATeacher(module, 0.5)
    x = torch.randn(4, 3, requires_grad=True)
    out = teacher(x)
    assert not out.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    module(x).sum().backward()
    teacher.update(module)
    assert all(p.grad is None and p.grad_fn is None for p in teacher.parameters())
    assert all(parameter.grad is not None for parameter in module.parameters())
    # Turned on by somebody's `requires_grad_()` over a parent, the forward gives none all the same.
    teacher.requires_grad_(True)
    assert not teacher(x).requires_grad
    teacher.update(module)


def test_an_update_is_seen_by_no_graph() -> None:
    """`update` between forward and backward leaves the student's graph as it is."""
    module = student()
    teacher = EMATeacher(module, 0.5)
    loss = (module(torch.randn(4, 3)) - teacher(torch.randn(4, 3))).square().sum()
    teacher.update(module)
    loss.backward()


def test_always_eval() -> None:
    """Trap: the copy stays in train mode, and drop-path makes the targets random."""
    module = student(drop=0.5).train()
    parent = nn.ModuleDict({"student": module, "teacher": EMATeacher(module, 0.5)})
    teacher = parent["teacher"]
    x = torch.randn(6, 3)
    for _ in range(2):
        assert not any(part.training for part in teacher.modules())
        assert torch.equal(teacher(x), teacher(x))
        assert not torch.equal(module(x), module(x))
        parent.train()
        teacher.train()
        teacher.update(module)
    assert module.training


def test_drop_path_is_the_students_alone() -> None:
    backbone = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        depth=4,
        embed_dim=64,
        num_heads=4,
        num_classes=0,
        drop_path_rate=0.5,
    )
    encoder = MaskedViT(backbone).train()
    teacher = EMATeacher(encoder, 0.5).train()
    images = torch.randn(8, 3, 32, 32)
    assert torch.equal(teacher(images), teacher(images))
    assert not torch.equal(encoder(images), encoder(images))


def test_called_like_the_student() -> None:
    class Two(nn.Module):
        def forward(self, a: Tensor, *, b: Tensor) -> dict[str, Tensor]:
            return {"sum": a + b}

    teacher = EMATeacher(Two(), 0.5)
    assert teacher(torch.ones(1), b=torch.ones(1))["sum"] == 2
    teacher.update(Two())  # without a single parameter
    assert teacher.step == 1


def test_moves_with_to() -> None:
    teacher = EMATeacher(student(), 0.5).to(torch.float64)
    assert teacher.module.first.weight.dtype == torch.float64
    teacher.update(student(1))
    assert teacher.module.first.weight.dtype == torch.float64
