"""`EMATeacher` looks through the wrappers of a student."""

import copy

import pytest
import torch
from tests.teacher.students import perturb, student, tensors
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from jepakit import EMATeacher


def _updated(wrapped: nn.Module, module: nn.Module, teacher: EMATeacher) -> None:
    """The teacher takes the student's step, through its wrapper, under the student's names."""
    before = tensors(teacher.module)
    assert not any("module." in name or "_orig_mod" in name for name in teacher.module.state_dict())
    perturb(module)
    teacher.update(wrapped)
    now = tensors(module)
    clean = {name.replace("_orig_mod.", ""): tensor for name, tensor in now.items()}
    after = tensors(teacher.module)
    for name, parameter in teacher.module.named_parameters():
        torch.testing.assert_close(parameter, (before[name] + clean[name]) / 2)
    for name in dict(teacher.module.named_buffers()):
        assert torch.equal(after[name], clean[name])


def test_ddp_student(process_group) -> None:
    """Trap: on a wrapper every name starts with `module.`, and updates silently stop."""
    module = student()
    wrapped = DistributedDataParallel(module)
    _updated(wrapped, module, EMATeacher(module, 0.5))
    _updated(wrapped, module, EMATeacher(wrapped, 0.5))
    _updated(module, module, EMATeacher(wrapped, 0.5))


@pytest.mark.parametrize("inner", [False, True], ids=["whole", "submodule"])
def test_compiled_student(inner) -> None:
    """Trap: `_orig_mod.` names from `torch.compile`: nothing matches, nothing is said."""
    module = student()
    plain = copy.deepcopy(module)
    if inner:
        module.second = torch.compile(module.second, backend="eager")
        wrapped = module
    else:
        wrapped = torch.compile(module, backend="eager")
    _updated(wrapped, module, EMATeacher(plain, 0.5))
    if not inner:
        _updated(wrapped, module, EMATeacher(wrapped, 0.5))
        _updated(module, module, EMATeacher(wrapped, 0.5))


def test_compiled_ddp_student(process_group) -> None:
    module = student()
    wrapped = torch.compile(DistributedDataParallel(module), backend="eager")
    _updated(wrapped, module, EMATeacher(wrapped, 0.5))
    wrapped = DistributedDataParallel(torch.compile(module, backend="eager"))
    _updated(wrapped, module, EMATeacher(wrapped, 0.5))


@pytest.mark.no_hook
@torch.no_grad()
def test_compiled_submodule_runs_in_the_teacher() -> None:
    """The copy of a compiled part runs on the teacher's weights, not on the student's."""
    module = student().eval()
    module.second = torch.compile(module.second, backend="eager")
    teacher = EMATeacher(module, 0.0)
    x = torch.randn(5, 3)
    before = module(x)
    assert torch.equal(teacher(x), before)
    perturb(module)
    assert torch.equal(teacher(x), before)
    assert not torch.equal(module(x), before)
    teacher.update(module)
    assert torch.equal(teacher(x), module(x))
