"""One rank of test_scaling.py: `python scaling_worker.py RANK WORLD_SIZE STORE FOLDER`.

Trains I-JEPA, H-JEPA and LeJEPA for a few steps on its share of the same global batches, with DDP
and with FSDP2, and saves to FOLDER what the number of ranks must not change.
"""

import functools
import sys
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist
from tests.ranks import joined
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from jepakit import (
    EMATeacher,
    HierarchicalPyramid,
    IndexedDataset,
    MaskCollator,
    MaskedPredictor,
    MaskedViT,
    Masks,
    MultiBlockMask,
    TokenSet,
    hierarchical_loss,
    linear,
    masked_mse,
    masked_smooth_l1,
    normalize_targets,
    take_tokens,
)
from jepakit.data import ResumableBatches, random_crops
from jepakit.losses import SoftOptimalWeights, lejepa_loss
from jepakit.masking import NestedMask
from jepakit.nn import Level
from jepakit.optim import param_groups

STEPS, BATCH, LEVELS, DIM = 20, 8, 2, 16
GRID = (6, 6)


def build_encoder() -> MaskedViT:
    backbone = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=24, patch_size=4, embed_dim=DIM, depth=2,
        num_heads=2,
    )  # fmt: skip
    return MaskedViT(backbone)


def build_predictor(grid: tuple[int, ...]) -> MaskedPredictor:
    return MaskedPredictor(grid, DIM, predictor_embed_dim=16, depth=1, num_heads=2)


class IJEPA(nn.Module):
    """Each objective has a `student`, which the teacher averages, and further trained `parts`."""

    sampler = MultiBlockMask(GRID, num_targets=2)  # sizes of a batch are those of all ranks' parts

    def __init__(self) -> None:
        super().__init__()
        self.student = build_encoder()
        self.parts = nn.ModuleList([build_predictor(GRID)])

    def forward(self, images: Tensor, masks: Masks, teacher: nn.Module, seed: int) -> Tensor:
        context = self.student(images, masks.context)
        pred = self.parts[0](context, masks.context, masks.targets)
        target = take_tokens(normalize_targets(teacher(images)), masks.targets)
        valid = masks.targets.valid
        return masked_smooth_l1(pred, target, valid, process_group=dist.group.WORLD)


class PyramidStudent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = build_encoder()
        self.pyramid = HierarchicalPyramid(GRID, DIM, num_levels=LEVELS, projection="linear")

    def forward(self, images: Tensor, context: TokenSet | None = None) -> list[Level]:
        return self.pyramid(self.encoder(images, context), context)


class HJEPA(IJEPA):
    # Sizes of each sample: ranks have different numbers of targets.
    sampler = NestedMask(
        GRID,
        MultiBlockMask(
            (3, 3), num_targets=2, target_scale=(0.1, 0.3), target_size_per="sample",
            min_context_coverage=0.2,
        ),
    )  # fmt: skip

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.student = PyramidStudent()
        grids = self.student.pyramid.grid_sizes
        self.parts = nn.ModuleList(build_predictor(grid) for grid in grids)

    def forward(self, images: Tensor, masks: Masks, teacher: nn.Module, seed: int) -> Tensor:
        preds, targets, valids = [], [], []
        levels = zip(self.parts, self.student(images, masks.context), teacher(images), strict=True)
        for number, (predictor, level, (teacher_features, _)) in enumerate(levels):
            tokens = masks.coarsen(number).targets
            preds.append(predictor(*level, tokens))
            targets.append(take_tokens(normalize_targets(teacher_features), tokens))
            valids.append(tokens.valid)
        return hierarchical_loss(
            preds,
            targets,
            valids,
            weights=SoftOptimalWeights(temperature=10.0),
            loss=functools.partial(masked_mse, process_group=dist.group.WORLD),
        )[0]


class LeJEPA(IJEPA):
    """Without BatchNorm in the projector, whose statistics are of one rank's part."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.student = build_encoder()
        layers = nn.Linear(DIM, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 8)
        self.parts = nn.ModuleList([nn.Sequential(*layers)])

    def forward(self, images: Tensor, masks: Masks, teacher: nn.Module, seed: int) -> Tensor:
        views = [self.student(view).mean(dim=1) for view in images.unflatten(1, (2, 3)).unbind(1)]
        directions = torch.Generator().manual_seed(seed)
        return lejepa_loss(
            torch.stack([self.parts[0](view) for view in views]),
            num_slices=32,
            generator=directions,
            process_group=dist.group.WORLD,
        )


class Views(TensorDataset):
    """Two crops of each image, functions of its epoch and index, in the channels: `[6 h w]`."""

    def __getitem__(self, index: Any) -> tuple[Tensor, Tensor]:
        image, label = super().__getitem__(index)
        generator = torch.Generator().manual_seed(1_000 * index.epoch + index)
        views = random_crops(image.expand(2, -1, -1, -1), (0.5, 1.0), generator=generator)
        return views.flatten(0, 1), label


def images() -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randn(28, 3, 24, 24, generator=random, dtype=torch.float64)
    return [pixels, torch.arange(28)]


def whole(module: nn.Module) -> dict[str, Tensor]:
    return get_model_state_dict(module, options=StateDictOptions(full_state_dict=True))


def train(kind: type[IJEPA], sharded: bool, rank: int, world_size: int) -> dict[str, Any]:
    torch.manual_seed(0)
    objective = kind().double()
    teacher = EMATeacher(objective.student, linear(0.9, 1.0, steps=STEPS))
    model: nn.Module = objective
    if sharded:
        mesh = init_device_mesh("cpu", (world_size,))
        for module in (objective.student, teacher.module):
            for block in getattr(module, "encoder", module).backbone.blocks:
                fully_shard(block, mesh=mesh)
            fully_shard(module, mesh=mesh)
        for part in objective.parts:
            fully_shard(part, mesh=mesh)
    else:
        model = DistributedDataParallel(objective)
    optimizer = torch.optim.AdamW(param_groups(objective, 0.05), lr=1e-3)
    order = ResumableBatches(
        28, BATCH // world_size, steps=STEPS, seed=0, rank=rank, world_size=world_size
    )
    dataset = Views(*images()) if kind is LeJEPA else TensorDataset(*images())
    loader = DataLoader(
        IndexedDataset(dataset), batch_sampler=order, collate_fn=MaskCollator(kind.sampler, seed=0)
    )
    seen = []
    for step, ((pixels, indices), masks) in enumerate(loader):
        model(pixels, masks, teacher, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        teacher.update(objective.student)
        context, targets = masks.context.to_mask(), masks.targets.to_mask()
        seen.append(
            {
                int(index): (pixels[i], context[i], targets[i])
                for i, index in enumerate(indices.tolist())
            }
        )
    parts: list[Any] = [None] * world_size
    dist.all_gather_object(parts, seen)
    batches = []
    for of_ranks in zip(*parts, strict=True):
        joined_batch = {index: sample for batch in of_ranks for index, sample in batch.items()}
        batches.append(dict(sorted(joined_batch.items())))
    return {
        "student": whole(objective.student) | whole(objective.parts),
        "teacher": whole(teacher.module),
        "batches": batches,
        "sizes": [len(rank[0]) for rank in parts],
    }


def main(rank: int, world_size: int) -> None:
    results = {
        f"{kind.__name__} {'FSDP2' if sharded else 'DDP'}": train(kind, sharded, rank, world_size)
        for kind in (IJEPA, HJEPA, LeJEPA)
        for sharded in (False, True)
    }
    if rank == 0:
        torch.save(results, Path(sys.argv[4]) / f"{world_size}.pt")


if __name__ == "__main__":
    with joined() as ranks:
        main(*ranks)
