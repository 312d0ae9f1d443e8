"""`assert_teacher_contract` passes `EMATeacher` and fails teachers with known errors."""

import copy
from typing import Any

import pytest
import timm
import torch
from tests.testing.violations import violates
from torch import Tensor, nn

from jepakit import EMATeacher, MaskedViT, cosine, linear
from jepakit.testing import assert_teacher_contract
from jepakit.testing._violation import Law


class Student(nn.Module):
    """Drop-out, running statistics, an index table and a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.second = nn.Linear(4, 2)
        self.register_buffer("index", torch.tensor([7, 3, 5]))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("fleeting", torch.tensor([0.5]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.drop(self.norm(self.first(x)).relu()))


INPUTS = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
MOMENTUM = linear(0.99, 1.0, steps=10)


@pytest.mark.parametrize("momentum", [0.0, 0.996, MOMENTUM, cosine(0.5, 1.0, steps=3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_ema_teacher_passes(dtype, momentum):
    student = Student().to(dtype)
    teacher = EMATeacher(student, momentum)
    kept = copy.deepcopy((teacher.state_dict(), student.state_dict()))
    own = teacher.module.first.weight.dtype
    assert_teacher_contract(teacher, student, (INPUTS.to(own),))
    for module, before in zip((teacher, student), kept, strict=True):
        for name, tensor in module.state_dict().items():
            same = torch.equal(tensor, before[name]) if isinstance(tensor, Tensor) else True
            assert same, "both are left as they are"
    assert teacher.step == 0 and student.training


def test_a_vit_passes():
    backbone = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=2, num_classes=0, drop_path_rate=0.5
    )
    encoder = MaskedViT(backbone)
    assert_teacher_contract(EMATeacher(encoder, MOMENTUM), encoder, torch.randn(2, 3, 32, 32))


class Own(nn.Module):
    """A user's teacher that keeps the contract; the broken ones change one method of it."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.module = self.copied(student).requires_grad_(False)
        self.register_buffer("step", torch.tensor(0))
        self.eval()

    @property
    def momentum(self) -> float:
        return MOMENTUM(int(self.step))

    def copied(self, student: nn.Module) -> nn.Module:
        return copy.deepcopy(student)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        return self.module(x)

    def train(self, mode: bool = True) -> "Own":
        return super().train(False)

    def average(self, mine: Tensor, other: Tensor) -> None:
        mine.lerp_(other, 1 - self.momentum)

    def copy(self, mine: Tensor, other: Tensor) -> None:
        mine.copy_(other)

    def pairs(self, student: nn.Module) -> tuple[Any, Any]:
        ours, theirs = dict(self.module.named_parameters()), dict(student.named_parameters())
        if ours.keys() != theirs.keys():
            raise ValueError("names")
        parameters = [(ours[name], theirs[name]) for name in ours]
        return parameters, zip(self.module.buffers(), student.buffers(), strict=True)

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        parameters, buffers = self.pairs(student)
        for mine, other in parameters:
            self.average(mine, other)
        for mine, other in buffers:
            self.copy(mine, other)
        self.step += 1


def test_a_users_own_teacher_passes():
    student = Student()
    assert_teacher_contract(Own(student), student, INPUTS)


class AveragesFloatBuffers(Own):
    def copy(self, mine: Tensor, other: Tensor) -> None:
        super().copy(mine, other) if not mine.is_floating_point() else self.average(mine, other)


def test_float_buffers_may_be_averaged():
    student = Student()
    assert_teacher_contract(AveragesFloatBuffers(student), student, INPUTS)


class InitialisedAgain(Own):
    def copied(self, student: nn.Module) -> nn.Module:
        module = super().copied(student)
        module.first.reset_parameters()
        return module


class IsTheStudent(Own):
    def copied(self, student: nn.Module) -> nn.Module:
        return student


class HalfAverage(Own):
    def copied(self, student: nn.Module) -> nn.Module:
        return super().copied(student).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.bfloat16())


class CarriesAGradient(Own):
    forward = Own.forward.__wrapped__

    def __init__(self, student: nn.Module) -> None:
        super().__init__(student)
        self.requires_grad_(True)


class FollowsItsParentsMode(Own):
    def train(self, mode: bool = True) -> "Own":
        return nn.Module.train(self, mode)


class OnlyTheTopIsEval(Own):
    def train(self, mode: bool = True) -> "Own":
        nn.Module.train(self, mode)
        self.training = False
        return self


class AlwaysDropsOut(Own):
    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out if self.first() else out + torch.rand_like(out)

    def first(self) -> bool:
        self.calls = getattr(self, "calls", 0) + 1
        return self.calls == 1


class NeverMoves(Own):
    """Names with a wrapper's prefix: nothing matches, without an error."""

    def pairs(self, student: nn.Module) -> tuple[Any, Any]:
        super().pairs(student)
        return [], zip(self.module.buffers(), student.buffers(), strict=True)


class MomentumTheOtherWayRound(Own):
    def average(self, mine: Tensor, other: Tensor) -> None:
        mine.lerp_(other, self.momentum)


class MomentumOfTheNextStep(Own):
    def average(self, mine: Tensor, other: Tensor) -> None:
        mine.lerp_(other, 1 - MOMENTUM(int(self.step) + 1))


class AveragesIntegers(Own):
    def copy(self, mine: Tensor, other: Tensor) -> None:
        if mine.dtype == torch.int64:
            mine.copy_(0.5 * mine + 0.5 * other)
        else:
            super().copy(mine, other)


class LeavesBuffersBehind(Own):
    def copy(self, mine: Tensor, other: Tensor) -> None:
        if not mine.is_floating_point():
            super().copy(mine, other)


class MovesTheStudent(Own):
    def average(self, mine: Tensor, other: Tensor) -> None:
        super().average(mine, other)
        other.copy_(mine)


class StartsAgainOnResume(Own):
    def __init__(self, student: nn.Module) -> None:
        super().__init__(student)
        self._non_persistent_buffers_set.add("step")


class ForgetsItsWeights(Own):
    def state_dict(self, *args: Any, **keywords: Any) -> Any:
        return {n: t for n, t in super().state_dict(*args, **keywords).items() if "first" not in n}

    def load_state_dict(self, state: Any, strict: bool = True) -> Any:
        return super().load_state_dict(state, strict=False)


class StateDoesNotLoad(Own):
    def state_dict(self, *args: Any, **keywords: Any) -> Any:
        state = super().state_dict(*args, **keywords)
        return {f"ema.{name}": tensor for name, tensor in state.items()}


class SkipsMissingNames(Own):
    def pairs(self, student: nn.Module) -> tuple[Any, Any]:
        theirs = dict(student.named_parameters())
        named = self.module.named_parameters()
        parameters = [(mine, theirs[name]) for name, mine in named if name in theirs]
        return parameters, zip(self.module.buffers(), student.buffers(), strict=True)


BROKEN = [
    (InitialisedAgain, r"first.(weight|bias) differs from the student's by .*, at step 0"),
    (IsTheStudent, "first.weight shares the memory of the student's first.weight"),
    (HalfAverage, "first.weight is torch.bfloat16, must be float32"),
    (CarriesAGradient, "the output carries a gradient"),
    (FollowsItsParentsMode, r"teacher.train\(\) left 6 of the teacher's modules in train mode"),
    (
        OnlyTheTopIsEval,
        r"teacher.train\(\) left 5 of the teacher's modules in train mode: .*module",
    ),
    (AlwaysDropsOut, "two calls with the same input differ"),
    (NeverMoves, r"update left first.weight unchanged at momentum 0\.99"),
    (MomentumTheOtherWayRound, r"first.weight after an update at momentum 0\.99"),
    (MomentumOfTheNextStep, r"first.weight after an update at momentum 0\.99"),
    (AveragesIntegers, r"int64\) is .* integers and booleans are copied, never averaged"),
    (LeavesBuffersBehind, "update left the buffer fleeting unchanged"),
    (MovesTheStudent, "update changed first.weight of the student"),
    (StartsAgainOnResume, "step is 3 in the first run and 0 in the resumed one"),
    (ForgetsItsWeights, "an update after resuming differs in first.weight"),
    (StateDoesNotLoad, "the state dict does not load into another teacher"),
    (SkipsMissingNames, "update must raise for a student with an additional parameter"),
]


@pytest.mark.parametrize(("kind", "text"), BROKEN)
def test_broken(kind, text):
    """Traps: re-initialised after the copy; the copy stays in train mode; names that match nothing;
    integers averaged; a schedule reset on resume; an average in bfloat16."""
    student = Student()
    with violates(Law.TEACHER, text):
        assert_teacher_contract(kind(student), student, INPUTS)


class TakesAShorterStudent(SkipsMissingNames):
    def pairs(self, student: nn.Module) -> tuple[Any, Any]:
        if len(dict(student.named_parameters())) > len(dict(self.module.named_parameters())):
            raise ValueError("names")
        return super().pairs(student)


def test_a_missing_name():
    student = Student()
    with violates(Law.TEACHER, "update must raise for a student with first.weight missing"):
        assert_teacher_contract(TakesAShorterStudent(student), student, INPUTS)


def test_arguments():
    student = Student()
    with violates(Law.INTERFACE, "a teacher must have momentum; Linear has none|must have module"):
        assert_teacher_contract(nn.Linear(3, 2), student, INPUTS)
    with pytest.raises(ValueError, match=r"^teacher.momentum=1: must be below 1 at the start"):
        assert_teacher_contract(EMATeacher(student, 1.0), student, INPUTS)
