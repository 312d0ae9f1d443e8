"""`assert_teacher_contract`: the laws of a moving average of a student."""

import copy
import io
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from jepakit._checks import as_int
from jepakit.testing._global_random import global_seed
from jepakit.testing._violation import Law, fail, require_close

__all__ = ["assert_teacher_contract"]


def assert_teacher_contract(
    teacher: nn.Module, student: nn.Module, inputs: Any, *, seed: int = 0
) -> None:
    r"""Raise unless a teacher equals its student at step 0 and is its moving average later.

    Law 9:

    - At step 0 the teacher equals the student bit for bit, in float32 or wider, in memory of its
      own.
    - It never gets a gradient, and stays in eval mode when a parent is set to train mode.
    - `update` gives $m\,\bar\theta + (1 - m)\,\theta$ with $m$ = `teacher.momentum` before it,
      copies integer and boolean buffers, and copies or averages all others.
    - A state dict loads into another teacher, which then continues like the first.
    - `update` raises for a student with a parameter too many or too few.

    Both modules are copied first and not changed. A student with dropout, an integer buffer (as
    batch norm has) and a momentum schedule tests more than one without.

    Args:
        teacher: Newly built from `student`; with `module` (the average), `momentum` and `update`.
        student: The module that the teacher was built from, not wrapped.
        inputs: What both are called with: one argument, or a tuple of them; for a student in half
            precision, what the teacher is called with.
        seed: For the changes of the student.

    Raises:
        AssertionError: Names the violated law, what was found, and where.
        ValueError: If `teacher.momentum` is 1, at which an update has no effect.

    Example:
        >>> import torch
        >>> from jepakit import EMATeacher, linear
        >>> from jepakit.testing import assert_teacher_contract
        >>> student = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
        >>> teacher = EMATeacher(student, momentum=linear(0.9, 1.0, steps=100))
        >>> assert_teacher_contract(teacher, student, torch.randn(3, 4))
    """
    for name in ("module", "momentum", "update"):
        if not hasattr(teacher, name):
            fail(Law.INTERFACE, f"a teacher must have {name}; {type(teacher).__name__} has none")
    if teacher.momentum == 1:
        raise ValueError(
            "teacher.momentum=1: must be below 1 at the start, or an update has no effect"
        )
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    # In one call, so that memory which the two share is shared by the copies too.
    teacher, student = copy.deepcopy((teacher, student))
    unused = copy.deepcopy(teacher)

    with global_seed(as_int("seed", seed)):
        _check_start(teacher, student, arguments)
        _check_mode(teacher, student, arguments)
        for _ in range(3):
            _check_update(teacher, student)
        _check_resume(teacher, unused, student)
        _check_names(teacher, student)


def _output_tensors(module: nn.Module, arguments: tuple[Any, ...]) -> list[Tensor]:
    leaves = pytree.tree_leaves(module(*arguments))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _tensors(module: Any) -> dict[str, Tensor]:
    """Parameters and buffers by name, those buffers included that no state dict holds."""
    return dict((*module.named_parameters(), *module.named_buffers()))


def _cloned_tensors(module: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in _tensors(module).items()}


def _perturb(student: nn.Module) -> None:
    """Change every parameter and buffer, in place of an optimiser's step."""
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter))
        for buffer in student.buffers():
            if buffer.dtype == torch.bool:
                buffer.logical_not_()
            elif buffer.is_floating_point():
                buffer.add_(torch.rand_like(buffer))
            else:
                buffer.add_(1)


def _check_start(teacher: nn.Module, student: nn.Module, arguments: tuple[Any, ...]) -> None:
    ours, theirs = _tensors(teacher.module), _tensors(student)
    if ours.keys() != theirs.keys():
        odd = sorted(ours.keys() ^ theirs.keys())
        fail(Law.TEACHER, f"teacher.module and student do not have the same names: {odd[:5]}")
    memory = {tensor.data_ptr(): name for name, tensor in theirs.items() if tensor.numel()}
    for name, tensor in ours.items():
        if tensor.dtype in (torch.float16, torch.bfloat16):
            fail(
                Law.TEACHER,
                f"{name} is {tensor.dtype}, must be float32",
                hint="in half precision an average at momentum 0.999 does not change",
            )
        if not torch.equal(tensor, theirs[name].to(tensor.dtype)):
            gap = (tensor.double() - theirs[name].double()).abs().max().item()
            fail(Law.TEACHER, f"{name} differs from the student's by {gap:.3g}", where="step 0")
        if tensor.numel() and tensor.data_ptr() in memory:
            owner = memory[tensor.data_ptr()]
            fail(Law.TEACHER, f"{name} shares the memory of the student's {owner}")
    outputs = _output_tensors(teacher, arguments)
    if any(output.requires_grad for output in outputs):
        fail(Law.TEACHER, "the output carries a gradient")
    if any(tensor.dtype != theirs[name].dtype for name, tensor in ours.items()):
        return  # the outputs of a student in half precision are rounded
    student.eval()
    with torch.no_grad():
        expected = _output_tensors(student, arguments)
    student.train()
    for output, other in zip(outputs, expected, strict=True):
        if not torch.equal(output, other):
            gap = (output.double() - other.double()).abs().max().item()
            fail(
                Law.TEACHER,
                f"the output differs from that of the student in eval mode by {gap:.3g}",
                where="step 0",
            )


def _check_mode(teacher: nn.Module, student: nn.Module, arguments: tuple[Any, ...]) -> None:
    parent = nn.ModuleList([student, teacher])
    for call, train in (("teacher.train()", teacher.train), ("train() of a parent", parent.train)):
        train()
        training = [name or "itself" for name, part in teacher.named_modules() if part.training]
        if training:
            fail(
                Law.TEACHER,
                f"{call} left {len(training)} of the teacher's modules in train mode, the first is "
                f"{training[0]}",
                hint="dropout and drop-path make targets random",
            )
    outputs = _output_tensors(teacher, arguments), _output_tensors(teacher, arguments)
    if not all(torch.equal(one, other) for one, other in zip(*outputs, strict=True)):
        fail(Law.TEACHER, "two calls with the same input differ")


def _check_update(teacher: Any, student: nn.Module) -> None:
    before, momentum = _cloned_tensors(teacher.module), float(teacher.momentum)
    _perturb(student)
    source = _cloned_tensors(student)
    teacher.update(student)
    for name, tensor in _tensors(student).items():
        if not torch.equal(tensor, source[name]):
            fail(Law.TEACHER, f"update changed {name} of the student")
    parameters = dict(teacher.module.named_parameters())
    for name, tensor in _cloned_tensors(teacher.module).items():
        if name not in parameters or not tensor.is_floating_point():
            _check_copied(name, tensor, before[name], source[name])
            continue
        _check_averaged(name, tensor, before[name].double(), source[name].double(), momentum)
        if parameters[name].grad is not None:
            fail(Law.TEACHER, f"{name} has a gradient")


def _check_copied(name: str, tensor: Tensor, before: Tensor, student: Tensor) -> None:
    """A buffer is copied; one of floats may be averaged instead."""
    copied = torch.equal(tensor, student.to(tensor.dtype))
    if not tensor.is_floating_point() and not copied:
        fail(
            Law.TEACHER,
            f"{name} ({tensor.dtype}) is {tensor.flatten()[:4].tolist()} after an update, the "
            f"student's is {student.flatten()[:4].tolist()}",
            hint="integers and booleans are copied, never averaged",
        )
    if not copied and torch.equal(tensor, before):
        fail(Law.TEACHER, f"update left the buffer {name} unchanged")


def _check_averaged(
    name: str, tensor: Tensor, before: Tensor, student: Tensor, momentum: float
) -> None:
    if torch.equal(tensor.double(), before) and momentum < 1 and not torch.equal(before, student):
        gap = float((student - before).abs().max())
        fail(
            Law.TEACHER,
            f"update left {name} unchanged at momentum {momentum:g}, {gap:.3g} away from the "
            "student's",
        )
    require_close(
        Law.TEACHER,
        f"{name} after an update at momentum {momentum:g}",
        tensor.double(),
        momentum * before + (1 - momentum) * student,
        1e-6,
        scale=float(torch.maximum(before.abs(), student.abs()).max()) if before.numel() else 1.0,
    )


def _check_resume(teacher: Any, other: Any, student: nn.Module) -> None:
    """`other`, an unused teacher that loads a state dict, continues like `teacher`."""
    file = io.BytesIO()
    torch.save(teacher.state_dict(), file)
    file.seek(0)
    try:
        other.load_state_dict(torch.load(file, weights_only=True))
    except Exception as error:
        fail(Law.TEACHER, f"the state dict does not load into another teacher: {error!r}")
    for name in ("step", "momentum"):
        ours, theirs = getattr(teacher, name, None), getattr(other, name, None)
        if ours != theirs:
            fail(Law.TEACHER, f"{name} is {ours} in the first run and {theirs} in the resumed one")
    _perturb(student)
    for each in (teacher, other):
        each.update(student)
    resumed = _tensors(other.module)
    saved = teacher.module.state_dict().keys()
    for name, tensor in _tensors(teacher.module).items():
        # A buffer that is not persistent is in no state dict.
        if name in saved and not torch.equal(tensor, resumed[name]):
            gap = (tensor.double() - resumed[name].double()).abs().max().item()
            fail(Law.TEACHER, f"an update after resuming differs in {name} by {gap:.3g}")


def _check_names(teacher: Any, student: nn.Module) -> None:
    longer = copy.deepcopy(student)
    longer.register_parameter("jepakit_probe", nn.Parameter(torch.zeros(1)))
    students = {"an additional parameter": longer}
    path = next((path for path, _ in student.named_parameters()), None)
    if path is not None:
        shorter = copy.deepcopy(student)
        owner, _, name = path.rpartition(".")
        delattr(shorter.get_submodule(owner), name)
        students[f"{path} missing"] = shorter
    for difference, wrong in students.items():
        try:
            copy.deepcopy(teacher).update(wrong)
        except Exception:  # any error is a refusal
            continue
        fail(Law.TEACHER, f"update must raise for a student with {difference}, and did not")
