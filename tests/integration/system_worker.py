"""One rank of test_distributed_system.py: `python system_worker.py RANK WORLD_SIZE STORE`."""

import timm
import torch
import torch.distributed as dist
from tests.ranks import joined
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jepakit import (
    EMATeacher,
    MaskedPredictor,
    MaskedViT,
    MultiBlockMask,
    TokenSet,
    masked_smooth_l1,
    normalize_targets,
    take_tokens,
)

BATCHES = [4, 2]  # images on each rank


def parts() -> tuple[MaskedViT, MaskedPredictor]:
    torch.manual_seed(0)
    backbone = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=4,
        depth=1,
        embed_dim=24,
        num_heads=2,
        num_classes=0,
    )
    encoder = MaskedViT(backbone).double()
    predictor = MaskedPredictor(
        encoder.grid_size, 24, predictor_embed_dim=16, depth=1, num_heads=2, position="learned"
    ).double()
    with torch.no_grad():
        for parameter in (*encoder.parameters(), *predictor.parameters()):
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return encoder, predictor


def data(rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images and flat masks, ragged within a rank and of different sizes on each."""
    random = torch.Generator().manual_seed(rank)
    scale = (0.05, 0.1) if rank else (0.15, 0.25)
    sampler = MultiBlockMask(
        (8, 8), num_targets=2, target_scale=scale, target_size_per="sample", context_length="pad"
    )
    masks = sampler(BATCHES[rank], generator=random)
    images = torch.randn(BATCHES[rank], 3, 32, 32, generator=random, dtype=torch.float64)
    return (1 + 3 * rank) * images, masks.context.to_mask(), masks.targets.to_mask()


def step(
    encoder: nn.Module,
    predictor: nn.Module,
    teacher: EMATeacher,
    batch: tuple[Tensor, Tensor, Tensor],
    group: dist.ProcessGroup | None,
) -> Tensor:
    images, context_mask, target_mask = batch
    context, targets = (TokenSet.from_mask(mask, (8, 8)) for mask in (context_mask, target_mask))
    pred = predictor(encoder(images, context), context, targets)
    target = take_tokens(normalize_targets(teacher(images)), targets)
    loss = masked_smooth_l1(pred, target, targets.valid, process_group=group)
    loss.backward()
    with torch.no_grad():
        for parameter in (*encoder.parameters(), *predictor.parameters()):
            parameter.sub_(parameter.grad)
    teacher.update(encoder)
    return loss.detach()


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def main(rank: int, world_size: int) -> None:
    batches = [data(other) for other in range(world_size)]
    counts = [int(masks.sum()) for _, _, masks in batches]
    assert len(set(counts)) > 1, counts

    one_encoder, one_predictor = parts()
    one_teacher = EMATeacher(one_encoder, 0.9)
    together = tuple(torch.cat(part) for part in zip(*batches, strict=True))

    encoder, predictor = parts()
    teacher = EMATeacher(encoder, 0.9)
    wrapped = DistributedDataParallel(encoder), DistributedDataParallel(predictor)
    for _ in range(2):
        expected = step(one_encoder, one_predictor, one_teacher, together, None)
        value = step(*wrapped, teacher, batches[rank], dist.group.WORLD)
        close(value, expected)
        for ours, theirs in (
            (encoder, one_encoder),
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
        for module in (*wrapped, one_encoder, one_predictor):
            module.zero_grad()


if __name__ == "__main__":
    with joined() as ranks:
        main(*ranks)
