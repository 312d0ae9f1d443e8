"""Arguments that `EMATeacher` rejects, without a change of its state."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.teacher.students import assert_same, perturb, student, tensors
from torch import nn

from jepakit import EMATeacher


def test_other_names_raise() -> None:
    """Trap: names that do not match are skipped in silence."""
    module = student()
    teacher = EMATeacher(module, 0.5)
    before = tensors(teacher.module)
    module.extra = nn.Linear(2, 2)
    del module.second
    text = (
        r"student: must have the names .* lacks \['second.bias', 'second.weight'\] and adds "
        r"\['extra.bias', 'extra.weight'\] \(2 missing, 2 extra\)"
    )
    with pytest.raises(ValueError, match=text):
        teacher.update(module)
    assert teacher.step == 0
    assert_same(tensors(teacher.module), before)


@pytest.mark.parametrize("kind", ["parameter", "buffer"])
@pytest.mark.parametrize("where", ["missing", "extra"])
def test_one_name_too_many_or_few_raises(kind, where) -> None:
    module, teacher = student(), EMATeacher(student(), 0.5)
    target = module if where == "extra" else teacher.module
    if kind == "parameter":
        target.more = nn.Parameter(torch.zeros(1))
    else:
        target.register_buffer("more", torch.zeros(1, dtype=torch.int64), persistent=False)
    expected = {
        "missing": r"lacks \['more'\] and adds none \(1 missing, 0 extra\)",
        "extra": r"lacks none and adds \['more'\] \(0 missing, 1 extra\)",
    }
    with pytest.raises(ValueError, match=expected[where]):
        teacher.update(module)


@pytest.mark.parametrize("name", ["index", "scale", "first"])
def test_other_shapes_raise(name) -> None:
    """A buffer of one element would be broadcast by `copy_` otherwise."""
    module = student()
    teacher = EMATeacher(module, 0.5)
    before = tensors(teacher.module)
    if name == "first":
        module.first = nn.Linear(1, 4)
        text = r"student: first.weight has shape \(4, 1\): must be \(4, 3\)"
    else:
        setattr(module, name, torch.zeros(1, dtype=getattr(module, name).dtype))
        text = rf"student: {name} has shape \(1,\)"
    with pytest.raises(ValueError, match=text):
        teacher.update(module)
    assert_same(tensors(teacher.module), before)


@pytest.mark.parametrize("momentum", [-0.1, 1.0001, float("nan")])
def test_momentum_outside_raises(momentum) -> None:
    with pytest.raises(ValueError, match=r"momentum=.*: must lie in \[0, 1\]"):
        EMATeacher(student(), momentum)
    scheduled = EMATeacher(student(), lambda step: momentum if step == 1 else 0.5)
    scheduled.update(student())
    before = tensors(scheduled.module)
    with pytest.raises(ValueError, match=r"momentum schedule at step 1=.*: must lie in \[0, 1\]"):
        scheduled.update(student(1))
    assert_same(tensors(scheduled.module), before)
    assert scheduled.step == 1


@pytest.mark.no_hook
def test_other_types_raise() -> None:
    with pytest.raises(TypeError, match=r"momentum='0.9': must be a number, got str"):
        EMATeacher(student(), "0.9")
    with pytest.raises(TypeError, match=r"student=dict: must be a torch.nn.Module"):
        EMATeacher({}, 0.9)


@pytest.mark.parametrize("value", [None, True, "0.9", torch.tensor(0.9), 1j])
def test_a_schedule_that_gives_no_number_raises(value) -> None:
    teacher = EMATeacher(student(), lambda step: value)
    with pytest.raises(TypeError, match=r"momentum schedule at step 0.*: must be a number, got"):
        teacher.update(student())


def test_the_error_of_a_schedule_is_shown() -> None:
    """Trap: an AttributeError in a property of a module ends as "no attribute 'momentum'"."""
    teacher = EMATeacher(student(), lambda step: step.total)
    text = r"momentum schedule at step 0: AttributeError: 'int' object has no attribute 'total'"
    with pytest.raises(RuntimeError, match=text) as caught:
        teacher.update(student())
    assert isinstance(caught.value.__cause__, AttributeError)
    with pytest.raises(RuntimeError, match=text):
        _ = teacher.momentum
    with pytest.raises(ZeroDivisionError):
        EMATeacher(student(), lambda step: step / 0).update(student())


def _whole(teacher: EMATeacher, module: nn.Module, dtype: torch.dtype) -> None:
    nn.ModuleDict({"student": module, "teacher": teacher}).to(dtype)


def _assigned(teacher: EMATeacher, module: nn.Module, dtype: torch.dtype) -> None:
    state = EMATeacher(module, 0.9).to(dtype).state_dict()
    teacher.load_state_dict(state, assign=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cast", [_whole, _assigned])
def test_a_teacher_in_half_precision_raises(cast, dtype) -> None:
    """Trap: cast with its parent, the average stands still for ever without an error."""
    module = student()
    teacher = EMATeacher(module, 0.999)
    cast(teacher, module, dtype)
    before = tensors(teacher.module)
    perturb(module)
    with pytest.raises(TypeError, match=rf"parameter first.weight is {dtype}; .* kept in float32"):
        teacher.update(module)
    assert teacher.step == 0
    assert_same(tensors(teacher.module), before)
    teacher.float()
    teacher.update(module)
    assert teacher.step == 1


def test_one_half_parameter_among_others_raises() -> None:
    module = student()
    teacher = EMATeacher(module, 0.999)
    teacher.module.second.half()
    with pytest.raises(TypeError, match=r"parameter second.weight is torch.float16"):
        teacher.update(module)


@pytest.mark.no_hook
def test_a_student_that_is_no_module_raises() -> None:
    teacher = EMATeacher(student(), 0.5)
    text = r"student=OrderedDict: must be a torch.nn.Module, not its state dict"
    with pytest.raises(TypeError, match=text):
        teacher.update(student().state_dict())
    assert teacher.step == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@given(data=st.data())
def test_a_student_that_diverged_leaves_the_teacher_alone(bad: float, data: st.DataObject) -> None:
    """Trap: one NaN in a run of days, and the teacher, the result of the run, is NaN for good."""
    dtype = data.draw(
        st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
    )
    student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).to(dtype)
    teacher = EMATeacher(student, 0.5)
    teacher.update(student)
    before = copy.deepcopy(teacher.state_dict())
    name, parameter = data.draw(st.sampled_from(list(student.named_parameters())))
    with torch.no_grad():
        parameter.view(-1)[data.draw(st.integers(0, parameter.numel() - 1))] = bad
    with pytest.raises(FloatingPointError, match=rf"student: {name} and 0 other parameters"):
        teacher.update(student)
    after = teacher.state_dict()
    assert after.pop("_extra_state") == before.pop("_extra_state") == {"step": 1}
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_large_numbers_are_no_divergence(dtype: torch.dtype) -> None:
    """Trap: a check by the sum of squares, which overflows at 1e20 in float32."""
    student = nn.Linear(8, 8).to(dtype)
    with torch.no_grad():
        student.weight.fill_(torch.finfo(dtype).max)
    teacher = EMATeacher(student, 0.5)
    teacher.update(student)
    assert teacher.step == 1


def test_running_statistics_may_be_infinite() -> None:
    """Buffers are copied, not averaged: they hold masks of infinities, and recover from NaN."""
    student = nn.BatchNorm1d(4)
    teacher = EMATeacher(student, 0.5)
    student.running_mean[0] = float("nan")
    teacher.update(student)
    assert teacher.module.running_mean[0].isnan()


class Arrived:
    """In place of the event of a copy from a GPU."""

    def __init__(self, arrived: bool) -> None:
        self.arrived = arrived

    def query(self) -> bool:
        return self.arrived


def test_a_result_that_arrives_late_is_read_by_the_next_update() -> None:
    """As on CUDA. Trap: it is lost where new pairs are made, for sharded tensors at each update."""
    student = nn.Linear(2, 2)
    teacher = EMATeacher(student, 0.5)
    teacher.update(student)
    with torch.no_grad():
        teacher.module.weight[0, 0] = torch.nan  # taken over before the result was there
    teacher._pairs._finite = torch.tensor(False), Arrived(False)
    teacher.update(student)
    student.bias = nn.Parameter(torch.ones(2))  # a change: the pairs are made anew
    teacher._pairs._finite[1].arrived = True
    with pytest.raises(FloatingPointError, match="student: weight and 0 other"):
        teacher.update(student)
