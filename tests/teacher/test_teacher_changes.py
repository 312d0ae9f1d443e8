"""`EMATeacher.update` compares student and teacher once, and again whenever something changed."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable

import pytest
import torch
from tests.teacher.students import Student, assert_same, perturb, student, tensors
from torch import nn

from jepakit import EMATeacher

Change = Callable[[Student, EMATeacher], object]


def _swap(module: Student, _teacher: EMATeacher) -> None:
    norm = module.norm
    norm.weight, norm.bias = norm.bias, norm.weight


def _assign(module: Student, name: str, tensor: torch.Tensor) -> None:
    setattr(module.first, name, tensor)


def _data(module: nn.Module, new: torch.Tensor) -> None:
    module.weight.data = new


CHANGES: dict[str, Change] = {
    "nothing": lambda s, t: None,
    "a parameter": lambda s, t: _assign(s, "weight", nn.Parameter(torch.randn(4, 3))),
    "two parameters swapped": _swap,
    "a parameter's memory": lambda s, t: _data(s.first, torch.randn(4, 3)),
    "a parameter's memory, the teacher's": lambda s, t: _data(t.module.first, torch.randn(4, 3)),
    "a module": lambda s, t: setattr(s, "first", nn.Linear(3, 4)),
    "a module, the teacher's": lambda s, t: setattr(t.module, "first", nn.Linear(3, 4)),
    "a buffer": lambda s, t: setattr(s, "scale", torch.tensor(9.0)),
    "a buffer, the teacher's": lambda s, t: setattr(t.module, "scale", torch.tensor(9.0)),
    "float64": lambda s, t: s.double(),
    "bfloat16": lambda s, t: s.bfloat16(),
    "float64, the teacher's": lambda s, t: t.double(),
    "bfloat16 and back": lambda s, t: s.bfloat16().float(),
    "complex": lambda s, t: (
        _assign(s, "weight", nn.Parameter(torch.randn(4, 3, dtype=torch.complex64))),
        setattr(t.module.first, "weight", nn.Parameter(torch.randn(4, 3, dtype=torch.complex64))),
    ),
    "loaded": lambda s, t: s.load_state_dict(student(5).state_dict(), assign=True),
    "loaded, the teacher": lambda s, t: t.load_state_dict(
        EMATeacher(student(6), 0.5).state_dict(), assign=True
    ),
    "a child compiled": lambda s, t: setattr(s, "first", torch.compile(s.first)),
    "the teacher's module": lambda s, t: setattr(t, "module", student(7).requires_grad_(False)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_noticed(name) -> None:
    """Law 9. Traps: an average of tensors that the model no longer has; a student that moved and is
    read where it was. A teacher that never made an update says what is right."""
    module = student()
    teacher = EMATeacher(module, 0.75)
    for _ in range(2):
        perturb(module)
        teacher.update(module)
    CHANGES[name](module, teacher)
    for _ in range(2):
        perturb(module)
        fresh = copy.deepcopy(teacher)
        fresh.update(module)
        teacher.update(module)
        assert_same(tensors(teacher.module), tensors(fresh.module))


def test_another_student() -> None:
    modules = student(0), student(1)
    teacher = EMATeacher(modules[0], 0.5)
    teacher.update(modules[0])
    before = tensors(teacher.module)
    teacher.update(modules[1])
    expected = 0.5 * (before["first.weight"] + modules[1].first.weight)
    torch.testing.assert_close(teacher.module.first.weight, expected)


def _prefix(module: nn.Linear) -> None:
    module.weight.data = module.weight.data[:1]  # at the same address


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda s, t: setattr(s, "first", nn.Linear(3, 5)), ValueError, "first.weight has shape"),
        (lambda s, t: _prefix(s.first), ValueError, r"first.weight has shape \(1, 3\)"),
        (lambda s, t: s.register_parameter("new", nn.Parameter(torch.ones(1))), ValueError, "new"),
        (lambda s, t: s.drop.register_buffer("new", torch.ones(1)), ValueError, "drop.new"),
        (lambda s, t: s.drop.add_module("new", nn.Linear(1, 1)), ValueError, "drop.new.weight"),
        (lambda s, t: delattr(t.module, "second"), ValueError, "second.weight"),
        (lambda s, t: t.bfloat16(), TypeError, "first.weight is torch.bfloat16"),
    ],
)
def test_what_no_longer_fits_raises(change, error, text) -> None:
    """Trap: names and shapes that were checked once; and an update that stops half way."""
    module = student()
    teacher = EMATeacher(module, 0.5)
    teacher.update(module)
    change(module, teacher)
    perturb(module)
    before = tensors(teacher.module)
    with pytest.raises(error, match=text):
        teacher.update(module)
    assert teacher.step == 1
    assert_same(tensors(teacher.module), before)


def test_momentum_1_ignores_the_student() -> None:
    """Trap: `lerp` with weight 0 is 0 * NaN, and a frozen teacher becomes NaN with the student."""
    module = student()
    teacher = EMATeacher(module, lambda step: 1.0 if step < 2 else 0.5)
    before = tensors(teacher.module)
    with torch.no_grad():
        for tensor in (*module.parameters(), module.scale, module.norm.running_mean):
            tensor.fill_(torch.nan)
    teacher.update(module)
    teacher.update(module)
    assert_same(tensors(teacher.module), before)
    assert teacher.step == 2
    with pytest.raises(FloatingPointError):
        teacher.update(module)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
def test_copies_have_their_own_tensors(duplicate) -> None:
    """Law 13. Trap: a copy that averages the tensors of the original."""
    module = student()
    teacher = EMATeacher(module, 0.5)
    perturb(module)
    teacher.update(module)
    keys = list(teacher.state_dict())
    other = duplicate(teacher)
    before = tensors(teacher.module)
    perturb(module)
    other.update(module)
    assert_same(tensors(teacher.module), before)
    assert list(other.state_dict()) == keys
    teacher.update(module)
    assert_same(tensors(teacher.module), tensors(other.module))


@pytest.mark.parametrize("cycle", [False, True])
def test_a_student_that_is_gone_is_freed(cycle) -> None:
    """Trap: what is kept of a student for the next update keeps its memory, or a hook that refers
    to it keeps the student itself."""
    module = student()
    if cycle:
        module.first.register_forward_hook(lambda *_: module.second)
    teacher = EMATeacher(student(), 0.5)
    teacher.update(module)
    gone = [weakref.ref(module), weakref.ref(module.first.weight), weakref.ref(module.norm)]
    gc.disable()
    try:
        del module
        if cycle:
            gc.collect()
        assert [ref() for ref in gone] == [None] * 3
        ours = [weakref.ref(teacher), weakref.ref(teacher.module.first.weight)]
        teacher.update(student())
        del teacher
        assert [ref() for ref in ours] == [None] * 2
    finally:
        gc.enable()


def test_other_memory_without_buffers() -> None:
    """Trap: `to` keeps parameters and replaces buffers only, so the parameters of a module without
    any buffer look as before."""
    module = nn.Linear(3, 4)
    teacher = EMATeacher(module, 0.5)
    teacher.update(module)
    module.bfloat16()
    perturb(module)
    expected = (teacher.module.weight + module.weight.float()) / 2
    teacher.update(module)
    torch.testing.assert_close(teacher.module.weight, expected)
    teacher.bfloat16()
    with pytest.raises(TypeError, match=r"weight is torch\.bfloat16"):
        teacher.update(module)
