"""Law 9: a resumed teacher is the uninterrupted one; copies, pickles and `repr`."""

import copy
import pickle

import pytest
import torch
from tests.teacher.students import assert_same, perturb, student, tensors
from torch import nn

from jepakit import EMATeacher, linear


def _run(teacher: EMATeacher, module: nn.Module, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        perturb(module)
        teacher.update(module)


def test_resumed_is_uninterrupted(tmp_path) -> None:
    """Trap: a momentum schedule that starts again on resume. Loads with `weights_only=True`."""
    schedule = linear(0.1, 1.0, steps=7)
    module = student()
    whole = EMATeacher(module, schedule)
    _run(whole, module, range(7))

    module = student()
    first = EMATeacher(module, schedule)
    _run(first, module, range(4))
    state = {"teacher": first.state_dict(), "student": module.state_dict()}
    torch.save(state, tmp_path / "state.pt")

    state = torch.load(tmp_path / "state.pt", weights_only=True)
    module = student(5)
    second = EMATeacher(module, schedule)
    module.load_state_dict(state["student"])
    # Of the non-persistent buffers and nothing else, a checkpoint does not know.
    module.fleeting.copy_(first.module.fleeting)
    module.index.copy_(first.module.index)
    second.load_state_dict(state["teacher"])
    assert second.step == 4
    assert second.momentum == first.momentum
    _run(second, module, range(4, 7))
    assert_same(tensors(second.module), tensors(whole.module))
    assert second.step == whole.step == 7


def test_state_dict_names_are_the_students() -> None:
    """The averaged weights load into a plain student."""
    module = student()
    teacher = EMATeacher(module, 0.5)
    _run(teacher, module, range(3))
    names = {f"module.{name}" for name in module.state_dict()}
    assert set(teacher.state_dict()) == names | {"_extra_state"}
    fresh = student(3)
    fresh.load_state_dict(teacher.module.state_dict())
    x = torch.randn(4, 3)
    torch.testing.assert_close(fresh.eval()(x), teacher(x))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_independent(duplicate) -> None:
    module = student()
    teacher = EMATeacher(module, linear(0.5, 1.0, steps=10))
    _run(teacher, module, range(2))
    other = duplicate(teacher)
    assert_same(tensors(other.module), tensors(teacher.module))
    assert other.step == 2 and other.momentum == teacher.momentum and not other.training
    before = tensors(teacher.module)
    _run(other, module, range(2, 4))
    assert other.step == 4 and teacher.step == 2
    assert_same(tensors(teacher.module), before)
    _run(teacher, student(), range(0))


def test_repr_tells_momentum_and_step() -> None:
    teacher = EMATeacher(student(), linear(0.996, 1.0, steps=10))
    teacher.update(student())
    assert "momentum=linear(start=0.996, end=1.0, steps=10), step=1" in repr(teacher)
