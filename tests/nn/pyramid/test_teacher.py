"""Encoder and pyramid as one student: its teacher, and what a constant projection can reach.

Trap: one online projector on both sides of a loss, where a constant one gives zero.
"""

import copy

import pytest
import torch
from torch import Tensor, nn

from jepakit import (
    CollapseMonitor,
    EMATeacher,
    HierarchicalPyramid,
    MaskedPredictor,
    MultiBlockMask,
    TokenSet,
    hierarchical_loss,
    masked_mse,
    normalize_targets,
    take_tokens,
)
from jepakit.diagnostics import Collapse
from jepakit.masking import NestedMask
from jepakit.nn import Level
from jepakit.testing import assert_teacher_contract

GRID, DIM = (8, 8), 12


class Student(nn.Module):
    """A stand-in for an encoder, a token at a time, and a pyramid on top: what a user writes."""

    def __init__(self, **arguments: object) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(5, 32), nn.GELU(), nn.Linear(32, DIM))
        self.pyramid = HierarchicalPyramid(GRID, DIM, **arguments)

    def forward(self, patches: Tensor, context: TokenSet | None = None) -> list[Level]:
        seen = patches if context is None else take_tokens(patches, context)
        return self.pyramid(self.encoder(seen), context)


ARGUMENTS = [
    {"projection": "linear"},
    {"pool": "conv", "fusion": "fpn-add", "norm": "layer"},
    {"pool": "attention", "fusion": "fpn-concat", "projection": "linear"},
]
KINDS = pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)


@KINDS
def test_the_teachers_pyramid_is_part_of_the_teacher(arguments) -> None:
    """Law 9: an exact copy at first, averaged with the rest, without a gradient."""
    student = Student(**arguments)
    teacher = EMATeacher(student, momentum=0.5)
    patches = torch.randn(3, 64, 5)
    for level, other in zip(student(patches), teacher(patches), strict=True):
        assert torch.equal(level.features, other.features)
        assert not other.features.requires_grad and level.features.requires_grad
        assert torch.equal(level.tokens.idx, other.tokens.idx)
    before = copy.deepcopy(teacher.module.pyramid.state_dict())
    with torch.no_grad():
        for parameter in student.pyramid.parameters():
            parameter.add_(torch.randn_like(parameter))
    teacher.update(student)
    now, online = teacher.module.pyramid.state_dict(), student.pyramid.state_dict()
    assert before.keys() == now.keys() == online.keys() and before
    for name in before:
        torch.testing.assert_close(now[name], (before[name] + online[name]) / 2)
    saved = copy.deepcopy(teacher.state_dict())
    resumed = EMATeacher(Student(**arguments), momentum=0.5)
    resumed.load_state_dict(saved)
    for level, other in zip(resumed(patches), teacher(patches), strict=True):
        assert torch.equal(level.features, other.features)


@KINDS
def test_teacher_contract(arguments) -> None:
    class Finest(Student):
        """The contract compares tensors: levels side by side."""

        def forward(self, patches: Tensor) -> Tensor:
            return torch.cat([level.features for level in super().forward(patches)], dim=1)

    student = Finest(**arguments)
    assert_teacher_contract(EMATeacher(student, momentum=0.9), student, torch.randn(2, 64, 5))


def predictors(grids) -> nn.ModuleList:
    return nn.ModuleList(
        MaskedPredictor(grid, DIM, predictor_embed_dim=16, depth=1, num_heads=2) for grid in grids
    )


def losses(student, goals, predict, patches, masks) -> tuple[Tensor, dict[str, Tensor]]:
    preds, targets, valids = [], [], []
    for number, (level, goal) in enumerate(
        zip(student(patches, masks.context), goals, strict=True)
    ):
        coarse = masks.coarsen(number).targets
        preds.append(predict[number](level.features, level.tokens, coarse))
        targets.append(take_tokens(normalize_targets(goal.features), coarse))
        valids.append(coarse.valid)
    return hierarchical_loss(preds, targets, valids, loss=masked_mse)


def drawn(seed: int, batch: int = 16):
    """Patches of a sample have a common part, so that targets can be predicted from a context."""
    generator = torch.Generator().manual_seed(seed)
    sampler = NestedMask(GRID, MultiBlockMask((2, 2), num_targets=2, context_length="pad"))
    patches = torch.randn(batch, 64, 5, generator=generator) * 0.5
    common = torch.randn(batch, 1, 5, generator=generator)
    return patches + common, sampler(batch, generator=generator)


def make_constant(linear: nn.Linear) -> None:
    with torch.no_grad():
        linear.weight.zero_()
    linear.weight.requires_grad_(False)


def test_it_trains() -> None:
    """Student, teacher, predictors of each level and the loss, as in the docs; every level's loss
    falls and every parameter of the student gets a gradient."""
    torch.manual_seed(0)
    student = Student(pool="conv", fusion="fpn-add", projection="linear")
    teacher = EMATeacher(student, momentum=0.99)
    predict = predictors(student.pyramid.grid_sizes)
    optimizer = torch.optim.AdamW([*student.parameters(), *predict.parameters()], lr=3e-3)
    history = []
    for step in range(40):
        patches, masks = drawn(step % 4)
        total, parts = losses(student, teacher(patches), predict, patches, masks)
        total.backward()
        assert all(p.grad is not None and p.grad.any() for p in student.parameters())
        optimizer.step()
        optimizer.zero_grad()
        teacher.update(student)
        history.append([float(part.detach()) for part in parts.values()])
    first, last = torch.tensor(history[:4]).mean(dim=0), torch.tensor(history[-4:]).mean(dim=0)
    assert (last < first).all()


def trained(
    constant: str | None, momentum: float = 1.0, steps: int = 60
) -> tuple[list[float], list[float], list[Collapse]]:
    """Each level's loss after some steps, the variance of its targets, and what its monitor saw."""
    torch.manual_seed(0)
    student = Student(projection="linear")
    teacher = EMATeacher(student, momentum=momentum)
    monitors = [CollapseMonitor(action="record") for _ in range(3)]
    seen: list[Collapse] = []
    predict = predictors(student.pyramid.grid_sizes)
    for number, predictor in enumerate(predict):
        if constant == "projector":
            make_constant(student.pyramid.projections[number])
            # Without positions, a predictor makes one vector of a constant.
            predictor.position_table.zero_()
        elif constant == "predictor":
            make_constant(predictor.proj)
    live = [p for p in [*student.parameters(), *predict.parameters()] if p.requires_grad]
    optimizer = torch.optim.Adam(live, lr=1e-2)
    for step in range(steps):
        patches, masks = drawn(step % 4)
        goals = teacher(patches)
        for monitor, goal in zip(monitors, goals, strict=True):
            found = monitor.update(goal.features.mean(dim=1), step=step)
            seen += [] if found is None else [found]
        total, parts = losses(student, goals, predict, patches, masks)
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        teacher.update(student)
    variances = []
    for number, goal in enumerate(teacher(patches)):
        coarse = masks.coarsen(number).targets
        targets = take_tokens(normalize_targets(goal.features), coarse)[coarse.valid]
        variances.append(float(targets.var(dim=0, correction=0).mean()))
    return [float(part.detach()) for part in parts.values()], variances, seen


def test_a_constant_does_not_reach_zero_loss() -> None:
    """Law 11. The student's projection (or the predictor's) is constant and everything else is
    trained on the same few batches, against the teacher as it was built: the loss stays at the
    targets' variance, the least that one vector for all tokens can reach. What is not constant
    gets below it."""
    for constant in ("projector", "predictor"):
        parts, variances, _ = trained(constant)
        assert min(variances) > 0.1, "the targets themselves have not collapsed"
        for part, variance in zip(parts, variances, strict=True):
            assert part > 0.8 * variance
    parts, variances, _ = trained(None, steps=100)
    for part, variance in zip(parts, variances, strict=True):
        assert part < 0.8 * variance


def test_a_teacher_that_follows_a_constant_is_noticed() -> None:
    """An average cannot prevent collapse: it follows a constant projection, and the loss falls
    because there is nothing left to predict. The monitors report it on every level, while it goes
    on (slow) and when it is done (full)."""
    parts, variances, seen = trained("projector", momentum=0.9, steps=120)
    assert max(variances) < 0.01 and max(parts) < 0.05
    assert [found.kind for found in seen] == ["slow"] * 3 + ["full"] * 3
    _, variances, seen = trained(None, momentum=0.9, steps=120)
    assert min(variances) > 0.1 and not {found.kind for found in seen} & {"slow", "full"}


def test_one_projector_on_both_sides_would() -> None:
    """The contrast to the tests above: with the online projection on the targets too, all is
    constant, and the loss is zero without anything having been learned."""
    torch.manual_seed(0)
    student = Student(projection="linear")
    for linear in student.pyramid.projections:
        make_constant(linear)
        nn.init.normal_(linear.bias)
    patches, masks = drawn(0)
    goals = student(patches)
    preds = [level.features for level in student(patches, masks.context)]
    for pred, goal in zip(preds, goals, strict=True):
        there = pred.abs().sum(dim=-1) > 0
        targets = goal.features[:, :1].expand_as(pred)
        assert masked_mse(pred, targets, there) < 1e-12
