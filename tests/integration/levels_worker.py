"""One rank of test_distributed_system.py: `python levels_worker.py RANK WORLD_SIZE STORE`."""

import functools

import torch
import torch.distributed as dist
from tests.ranks import joined
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jepakit import (
    EMATeacher,
    HierarchicalPyramid,
    MaskedPredictor,
    Masks,
    MultiBlockMask,
    TokenSet,
    hierarchical_loss,
    masked_smooth_l1,
    normalize_targets,
    take_tokens,
)
from jepakit.masking import NestedMask
from jepakit.nn import Level

GRID, DIM, LEVELS = (7, 12), 12, 3
BATCHES = [4, 2]  # samples on each rank


class Student(nn.Module):
    """A linear encoder of single tokens, and a pyramid."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(5, DIM)
        self.pyramid = HierarchicalPyramid(
            GRID, DIM, num_levels=LEVELS, pool="conv", fusion="fpn-add", projection="linear"
        )

    def forward(self, patches: Tensor, context: TokenSet | None = None) -> list[Level]:
        seen = patches if context is None else take_tokens(patches, context)
        return self.pyramid(self.encoder(seen), context)


def parts() -> tuple[Student, MaskedPredictor]:
    torch.manual_seed(0)
    student = Student().double()
    predictor = MaskedPredictor(
        GRID, DIM, predictor_embed_dim=16, depth=1, num_heads=2, num_levels=LEVELS
    ).double()
    with torch.no_grad():
        for parameter in (*student.parameters(), *predictor.parameters()):
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return student, predictor


def data(rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Patches and flat masks, ragged within a rank and of different sizes on each."""
    random = torch.Generator().manual_seed(rank)
    coarsest = MultiBlockMask(
        (2, 3), num_targets=2, target_scale=(0.15, 0.4), target_size_per="sample"
    )
    sampler = NestedMask(GRID, coarsest)
    masks = sampler(BATCHES[rank], generator=random)
    patches = torch.randn(BATCHES[rank], 84, 5, generator=random, dtype=torch.float64)
    return (1 + 3 * rank) * patches, masks.context.to_mask(), masks.targets.to_mask()


def step(
    student: nn.Module,
    predictor: nn.Module,
    teacher: EMATeacher,
    batch: tuple[Tensor, Tensor, Tensor],
    group: dist.ProcessGroup | None,
) -> Tensor:
    patches, context_mask, target_mask = batch
    masks = Masks(*(TokenSet.from_mask(mask, GRID) for mask in (context_mask, target_mask)))
    preds, targets, valids = [], [], []
    levels = zip(student(patches, masks.context), teacher(patches), strict=True)
    for number, ((features, context), teacher_level) in enumerate(levels):
        target_tokens = masks.coarsen(number).targets
        preds.append(predictor(features, context, target_tokens))  # one module for every level
        targets.append(take_tokens(normalize_targets(teacher_level.features), target_tokens))
        valids.append(target_tokens.valid)
    loss = functools.partial(masked_smooth_l1, process_group=group)
    total, _ = hierarchical_loss(preds, targets, valids, loss=loss)
    total.backward()
    with torch.no_grad():
        for parameter in (*student.parameters(), *predictor.parameters()):
            parameter.sub_(parameter.grad)
    teacher.update(student)
    return total.detach()


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def main(rank: int, world_size: int) -> None:
    batches = [data(other) for other in range(world_size)]
    one_student, one_predictor = parts()
    one_teacher = EMATeacher(one_student, 0.9)
    together = tuple(torch.cat(part) for part in zip(*batches, strict=True))

    student, predictor = parts()
    teacher = EMATeacher(student, 0.9)
    wrapped = DistributedDataParallel(student), DistributedDataParallel(predictor)
    for _ in range(2):  # DDP stops at an unused parameter in the second
        expected = step(one_student, one_predictor, one_teacher, together, None)
        close(step(*wrapped, teacher, batches[rank], dist.group.WORLD), expected)
        for ours, theirs in (
            (student, one_student),
            (predictor, one_predictor),
            (teacher, one_teacher),
        ):
            for (name, mine), (_, other) in zip(
                ours.named_parameters(), theirs.named_parameters(), strict=True
            ):
                close(mine.detach(), other.detach())
                if ours is not teacher:
                    assert mine.grad is not None and mine.grad.any(), name
                    close(mine.grad, other.grad)
        for module in (*wrapped, one_student, one_predictor):
            module.zero_grad()


if __name__ == "__main__":
    with joined() as ranks:
        main(*ranks)
