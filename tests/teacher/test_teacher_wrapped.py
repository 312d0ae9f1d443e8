"""`EMATeacher` looks through the wrappers of a student."""

import copy
import re
import threading

import pytest
import torch
from tests.teacher.students import perturb, student, tensors
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.nn.parallel import DistributedDataParallel

from jepakit import EMATeacher

PREFIXES = re.compile("(_orig_mod|_forward_module|_checkpoint_wrapped_module)[.]")


def _updated(wrapped: nn.Module, module: nn.Module, teacher: EMATeacher) -> None:
    """The teacher takes the student's step, through its wrapper, under the student's names."""
    before = tensors(teacher.module)
    assert not any("module" in name or "_orig_mod" in name for name in teacher.module.state_dict())
    perturb(module)
    teacher.update(wrapped)
    now = tensors(module)
    clean, before, after = (
        {PREFIXES.sub("", name): tensor for name, tensor in named.items()}
        for named in (now, before, tensors(teacher.module))
    )
    parameters = {PREFIXES.sub("", name) for name, _ in module.named_parameters()}
    assert after.keys() == clean.keys() > parameters
    for name, tensor in after.items():
        if name in parameters:
            torch.testing.assert_close(tensor, (before[name] + clean[name]) / 2)
        else:
            assert torch.equal(tensor, clean[name])


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


def _checkpoint_linears(module: nn.Module) -> None:
    apply_activation_checkpointing(module, check_fn=lambda part: isinstance(part, nn.Linear))


@pytest.mark.parametrize("built", ["before", "after", "after an update"])
def test_checkpointed_student(built) -> None:
    """Trap: `_checkpoint_wrapped_module.` in the names, where `update` raised."""
    module = student()
    if built == "after":
        _checkpoint_linears(module)
    teacher = EMATeacher(module, 0.5)
    if built == "after an update":
        teacher.update(module)
    if built != "after":
        _checkpoint_linears(module)
    assert any("_checkpoint_wrapped_module" in name for name, _ in module.named_modules())
    _updated(module, module, teacher)
    _updated(torch.compile(module, backend="eager"), module, teacher)
    x = torch.randn(5, 3)
    assert torch.equal(teacher(x), copy.deepcopy(teacher.module)(x))


def test_student_that_is_checkpointed_as_a_whole() -> None:
    module = student()
    wrapped = checkpoint_wrapper(module)
    _updated(wrapped, module, EMATeacher(module, 0.5))
    _updated(module, module, EMATeacher(wrapped, 0.5))


class FabricModule(nn.Module):
    """The wrapper of Lightning's Fabric in outline: both names, and a strategy that has locks."""

    def __init__(self, forward_module: nn.Module, original_module: nn.Module) -> None:
        super().__init__()
        self._forward_module, self._original_module = forward_module, original_module
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        return self._forward_module(x)


def test_student_wrapped_as_by_fabric(process_group) -> None:
    """Trap: `EMATeacher(fabric_wrapped)` copies locks; `_forward_module.` in the names."""
    module = student()
    compiled = torch.compile(module, backend="eager")
    for wrapped in (
        FabricModule(module, module),
        FabricModule(DistributedDataParallel(module), module),
        FabricModule(compiled, module),
        torch.compile(FabricModule(DistributedDataParallel(compiled), module), backend="eager"),
    ):
        with pytest.raises(TypeError, match="pickle"):
            copy.deepcopy(wrapped)
        _updated(wrapped, module, EMATeacher(module, 0.5))
        _updated(wrapped, module, EMATeacher(wrapped, 0.5))
        _updated(module, module, EMATeacher(wrapped, 0.5))


@pytest.mark.slow  # to import lightning takes seconds
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_student_of_fabric(compiled: bool, precision: str) -> None:
    fabric = pytest.importorskip("lightning.fabric").Fabric(
        accelerator="cpu", devices=1, precision=precision
    )
    module = student()
    wrapped = fabric.setup_module(torch.compile(module) if compiled else module)
    assert type(wrapped) is not type(module)
    _updated(wrapped, module, EMATeacher(module, 0.5))
    _updated(wrapped, module, EMATeacher(wrapped, 0.5))
