"""`assert_teacher_contract`: the laws of a moving average of a student."""

import copy
import io
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from jepakit._checks import as_int
from jepakit.testing._global_random import global_seed
from jepakit.testing._violation import Law, fail, require, require_attributes, require_close

__all__ = ["assert_teacher_contract"]

_fail = partial(fail, Law.TEACHER)
_require = partial(require, Law.TEACHER)


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

    Both modules are copied first. A student with dropout, an integer buffer (as
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
    require_attributes("a teacher", teacher, ("module", "momentum", "update"))
    if teacher.momentum == 1:
        raise ValueError("teacher.momentum=1: must be below 1 at the start, to test an update")
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    # In one call, so that memory which the two share is shared by the copies too.
    teacher, student = copy.deepcopy((teacher, student))
    unused = copy.deepcopy(teacher)

    with global_seed(as_int("seed", seed)):
        _check_start(teacher, student)
        _check_first_output(teacher, student, arguments)
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


def _require_equal(what: str, one: Tensor, other: Tensor, *, where: str = "") -> None:
    if not torch.equal(one, other):
        gap = (one.double() - other.double()).abs().max().item()
        _fail(f"{what} by {gap:.3g}", where=where)


@torch.no_grad()
def _perturb(student: nn.Module) -> None:
    """Change every parameter and buffer, in place of an optimiser's step."""
    for parameter in student.parameters():
        if parameter.is_floating_point():
            parameter.add_(torch.randn_like(parameter))
    for buffer in student.buffers():
        if buffer.dtype == torch.bool:
            buffer.logical_not_()
        else:
            buffer.add_(torch.rand_like(buffer) if buffer.is_floating_point() else 1)


def _check_start(teacher: Any, student: nn.Module) -> None:
    ours, theirs = _tensors(teacher.module), _tensors(student)
    odd = sorted(ours.keys() ^ theirs.keys())
    _require(not odd, f"teacher.module and student do not have the same names: {odd[:5]}")
    memory = {tensor.data_ptr(): name for name, tensor in theirs.items() if tensor.numel()}
    for name, tensor in ours.items():
        hint = "in half precision an average at momentum 0.999 does not change"
        half = tensor.dtype in (torch.float16, torch.bfloat16)
        _require(not half, f"{name} is {tensor.dtype}, must be float32", hint=hint)
        what = f"{name} differs from the student's"
        _require_equal(what, tensor, theirs[name].to(tensor.dtype), where="step 0")
        owner = memory.get(tensor.data_ptr()) if tensor.numel() else None
        _require(owner is None, f"{name} shares the memory of the student's {owner}")


def _check_first_output(teacher: Any, student: nn.Module, arguments: tuple[Any, ...]) -> None:
    outputs = _output_tensors(teacher, arguments)
    no_gradient = not any(output.requires_grad for output in outputs)
    _require(no_gradient, "the output carries a gradient")
    theirs = _tensors(student)
    if any(tensor.dtype != theirs[name].dtype for name, tensor in _tensors(teacher.module).items()):
        return  # the outputs of a student in half precision are rounded
    student.eval()
    with torch.no_grad():
        expected = _output_tensors(student, arguments)
    student.train()
    what = "the output differs from that of the student in eval mode"
    for output, other in zip(outputs, expected, strict=True):
        _require_equal(what, output, other, where="step 0")


def _check_mode(teacher: nn.Module, student: nn.Module, arguments: tuple[Any, ...]) -> None:
    parent = nn.ModuleList([student, teacher])
    for call, train in (("teacher.train()", teacher.train), ("train() of a parent", parent.train)):
        train()
        training = [name or "itself" for name, part in teacher.named_modules() if part.training]
        _require(
            not training,
            f"{call} left {len(training)} of the teacher's modules in train mode: {training[:1]}",
            hint="dropout and drop-path make targets random",
        )
    outputs = _output_tensors(teacher, arguments), _output_tensors(teacher, arguments)
    _require(all(map(torch.equal, *outputs)), "two calls with the same input differ")


def _check_update(teacher: Any, student: nn.Module) -> None:
    before, momentum = _cloned_tensors(teacher.module), float(teacher.momentum)
    _perturb(student)
    source = _cloned_tensors(student)
    teacher.update(student)
    for name, tensor in _tensors(student).items():
        _require(torch.equal(tensor, source[name]), f"update changed {name} of the student")
    parameters = dict(teacher.module.named_parameters())
    for name, tensor in _cloned_tensors(teacher.module).items():
        if name not in parameters or not tensor.is_floating_point():
            _check_copied(name, tensor, before[name], source[name])
            continue
        _check_averaged(name, tensor, before[name].double(), source[name].double(), momentum)
        _require(parameters[name].grad is None, f"{name} has a gradient")


def _check_copied(name: str, tensor: Tensor, before: Tensor, student: Tensor) -> None:
    """Check that a buffer is copied; one of floats may be averaged instead."""
    if torch.equal(tensor, student.to(tensor.dtype)):
        return
    ours, theirs = tensor.flatten()[:4].tolist(), student.flatten()[:4].tolist()
    found = f"{name} ({tensor.dtype}) is {ours} after an update, the student's is {theirs}"
    hint = "integers and booleans are copied, never averaged"
    _require(tensor.is_floating_point(), found, hint=hint)
    _require(not torch.equal(tensor, before), f"update left the buffer {name} unchanged")


def _check_averaged(
    name: str, tensor: Tensor, before: Tensor, student: Tensor, momentum: float
) -> None:
    if momentum < 1 and torch.equal(tensor.double(), before) and not torch.equal(before, student):
        _fail(f"update left {name} unchanged at momentum {momentum:g}")
    require_close(
        Law.TEACHER,
        f"{name} after an update at momentum {momentum:g}",
        tensor.double(),
        momentum * before + (1 - momentum) * student,
        1e-6,
        scale=float(torch.maximum(before.abs(), student.abs()).max()) if before.numel() else 1.0,
    )


def _check_resume(teacher: Any, other: Any, student: nn.Module) -> None:
    """Check that `other`, an unused teacher, continues like `teacher` from its state dict."""
    file = io.BytesIO()
    torch.save(teacher.state_dict(), file)
    file.seek(0)
    try:
        other.load_state_dict(torch.load(file, weights_only=True))
    except Exception as error:
        _fail(f"the state dict does not load into another teacher: {error!r}")
    for name in ("step", "momentum"):
        ours, theirs = getattr(teacher, name, None), getattr(other, name, None)
        found = f"{name} is {ours} in the first run and {theirs} in the resumed one"
        _require(ours == theirs, found)
    _perturb(student)
    for each in (teacher, other):
        each.update(student)
    resumed = _tensors(other.module)
    saved = teacher.module.state_dict().keys()
    for name, tensor in _tensors(teacher.module).items():
        if name in saved:  # a buffer that is not persistent is in no state dict
            what = f"an update after resuming differs in {name}"
            _require_equal(what, tensor, resumed[name])


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
        _fail(f"update must raise for a student with {difference}, and did not")
