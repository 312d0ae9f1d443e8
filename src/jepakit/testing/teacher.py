"""`assert_teacher_contract`: what a moving average of a student keeps."""

import copy
import io
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from jepakit.testing.breach import Law, fail, require_close
from jepakit.testing.global_random import global_seed

__all__ = ["assert_teacher_contract"]


def assert_teacher_contract(
    teacher: nn.Module, student: nn.Module, inputs: Any, *, seed: int = 0
) -> None:
    r"""Raise unless a teacher is its student at step 0, its average later, and nothing else.

    Law 9: equal to the student bit for bit at step 0, in float32 or wider, in memory of its own;
    never a gradient; eval mode whatever a parent is set to; `update` gives
    $m\,\bar\theta + (1 - m)\,\theta$ with $m$ = `teacher.momentum` before it, copies integer and
    boolean buffers and leaves no other buffer behind; a state dict goes into another teacher, which
    then continues as if never stopped; a student with a name too many or too few raises.

    Both are copied first and left as they are. A student with drop-out, an integer buffer (as batch
    norm has) and a momentum schedule shows more than one without.

    Args:
        teacher: Newly built from `student`; with `module` (the average), `momentum` and `update`.
        student: What it was built from, not wrapped.
        inputs: What both are called with: one argument, or a tuple of them; for a student in a half
            type what the teacher is called with.
        seed: Of the student's steps.

    Raises:
        AssertionError: Names the law that is broken, what was seen, and where.
        ValueError: If `teacher.momentum` is 1, at which no update could be seen.

    Example:
        >>> import torch
        >>> from jepakit import EMATeacher, linear
        >>> from jepakit.testing import assert_teacher_contract
        >>> student = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
        >>> teacher = EMATeacher(student, momentum=linear(0.9, 1.0, steps=100))
        >>> assert_teacher_contract(teacher, student, torch.randn(3, 4))

    Source:
        jepakit's own.
    """
    for name in ("module", "momentum", "update"):
        if not hasattr(teacher, name):
            fail(Law.INTERFACE, f"a teacher must have {name}; {type(teacher).__name__} has none")
    if teacher.momentum == 1:
        raise ValueError("teacher.momentum=1: must be below 1 at the start, or no update is seen")
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    # In one go, so that memory which the two share is shared by the copies.
    teacher, student = copy.deepcopy((teacher, student))
    unused = copy.deepcopy(teacher)

    with global_seed(seed):
        _check_start(teacher, student, arguments)
        _check_mode(teacher, student, arguments)
        for _ in range(3):
            _check_update(teacher, student)
        _check_resume(teacher, unused, student)
        _check_names(teacher, student)


def _call(module: nn.Module, arguments: tuple[Any, ...]) -> list[Tensor]:
    leaves = pytree.tree_leaves(module(*arguments))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _tensors(module: Any) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in (*module.named_parameters(), *module.named_buffers())}


def _cloned(module: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in _tensors(module).items()}


def _perturb(student: nn.Module) -> None:
    """A stand-in for an optimiser step, over every kind of tensor."""
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
                f"{name} is {tensor.dtype}; an average in a half type stands still at momentum "
                "0.999, so it must be kept in float32",
            )
        if not torch.equal(tensor, theirs[name].to(tensor.dtype)):
            gap = (tensor.double() - theirs[name].double()).abs().max().item()
            fail(Law.TEACHER, f"{name} differs from the student's by {gap:.3g} at step 0")
        if tensor.numel() and tensor.data_ptr() in memory:
            fail(
                Law.TEACHER,
                f"{name} lies in the memory of the student's {memory[tensor.data_ptr()]}",
            )
    outputs = _call(teacher, arguments)
    if any(output.requires_grad for output in outputs):
        fail(Law.TEACHER, "its output carries a gradient")
    if any(tensor.dtype != theirs[name].dtype for name, tensor in ours.items()):
        return  # of a student in a half type the outputs are rounded
    student.eval()
    with torch.no_grad():
        expected = _call(student, arguments)
    student.train()
    for output, other in zip(outputs, expected, strict=True):
        if not torch.equal(output, other):
            gap = (output.double() - other.double()).abs().max().item()
            fail(
                Law.TEACHER,
                f"its output differs from that of the student in eval mode by {gap:.3g} at step 0",
            )


def _check_mode(teacher: nn.Module, student: nn.Module, arguments: tuple[Any, ...]) -> None:
    parent = nn.ModuleList([student, teacher])
    for how, call in (("its own", teacher.train), ("a parent's", parent.train)):
        call()
        training = [name or "itself" for name, part in teacher.named_modules() if part.training]
        if training:
            fail(
                Law.TEACHER,
                f"{how} train() left {len(training)} of its modules in train mode, the first is "
                f"{training[0]}; drop-out and drop-path make targets random",
            )
    for one, other in zip(_call(teacher, arguments), _call(teacher, arguments), strict=True):
        if not torch.equal(one, other):
            fail(Law.TEACHER, "two calls with the same input differ")


def _check_update(teacher: Any, student: nn.Module) -> None:
    before, momentum = _cloned(teacher.module), float(teacher.momentum)
    _perturb(student)
    source = _cloned(student)
    teacher.update(student)
    for name, tensor in _tensors(student).items():
        if not torch.equal(tensor, source[name]):
            fail(Law.TEACHER, f"update changed {name} of the student")
    parameters = dict(teacher.module.named_parameters())
    for name, tensor in _cloned(teacher.module).items():
        old, new = before[name].double(), source[name].double()
        if name not in parameters or not tensor.is_floating_point():
            copied = torch.equal(tensor, source[name].to(tensor.dtype))
            if not tensor.is_floating_point() and not copied:
                fail(
                    Law.TEACHER,
                    f"{name} ({tensor.dtype}) is {tensor.flatten()[:4].tolist()} after an update, "
                    f"the student's is {source[name].flatten()[:4].tolist()}: integers and "
                    "booleans are copied, never averaged",
                )
            if not copied and torch.equal(tensor, before[name]):
                fail(Law.TEACHER, f"the buffer {name} was left behind by update")
            continue
        expected = momentum * old + (1 - momentum) * new
        if torch.equal(tensor, before[name]) and momentum < 1 and not torch.equal(old, new):
            fail(
                Law.TEACHER,
                f"{name} was not moved by update, at momentum {momentum:g}; the student's is "
                f"{float((new - old).abs().max()):.3g} away",
            )
        require_close(
            Law.TEACHER,
            f"{name} after an update at momentum {momentum:g}",
            tensor.double(),
            expected,
            1e-6,
            scale=float(torch.maximum(old.abs(), new.abs()).max()) if old.numel() else 1.0,
        )
        if parameters[name].grad is not None:
            fail(Law.TEACHER, f"{name} has a gradient")


def _check_resume(teacher: Any, other: Any, student: nn.Module) -> None:
    file = io.BytesIO()
    torch.save(teacher.state_dict(), file)
    file.seek(0)
    try:
        other.load_state_dict(torch.load(file, weights_only=True))
    except Exception as error:
        fail(Law.TEACHER, f"a state dict does not go into another teacher: {error!r}")
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
        if name not in saved:
            continue  # of a buffer that is not persistent no checkpoint knows
        if not torch.equal(tensor, resumed[name]):
            gap = (tensor.double() - resumed[name].double()).abs().max().item()
            fail(Law.TEACHER, f"an update after a resume differs in {name} by {gap:.3g}")


def _check_names(teacher: Any, student: nn.Module) -> None:
    longer = copy.deepcopy(student)
    longer.register_parameter("jepakit_probe", nn.Parameter(torch.zeros(1)))
    students = {"one name too many": longer}
    for path, _ in student.named_parameters():
        shorter = copy.deepcopy(student)
        owner, _, name = path.rpartition(".")
        delattr(shorter.get_submodule(owner), name)
        students[f"{path} missing"] = shorter
        break
    for what, wrong in students.items():
        try:
            copy.deepcopy(teacher).update(wrong)
        except Exception:  # whatever it is, it was said
            continue
        fail(Law.TEACHER, f"update took a student with {what} and said nothing")
