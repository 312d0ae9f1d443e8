"""I-JEPA in a loop of your own with Lightning's Fabric, in one file to copy and change.

    python examples/trainers/fabric_loop.py
    python examples/trainers/fabric_loop.py --devices 2 --accumulate 2 --bf16

`--batch-size` is that of a step of the optimiser, all processes and micro-batches together. With it
the same, any `--devices` and `--accumulate` train to the same weights, up to rounding. The same
command continues from the last checkpoint in `--out`, as if it had not been interrupted.

The result is a plain timm checkpoint of the teacher, `teacher.pth` in `--out`.
"""

import argparse
import os
from pathlib import Path

import timm
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader

from jepakit import (
    EMATeacher,
    IndexedDataset,
    MaskCollator,
    MaskedPredictor,
    MaskedViT,
    Masks,
    MultiBlockMask,
    effective_rank,
    linear,
    masked_smooth_l1,
    normalize_targets,
    take_tokens,
    warmup_cosine,
)
from jepakit.data import PixelStatistics, ResumableBatches, load_images
from jepakit.interop import timm_state_dict
from jepakit.nn import init_sincos_positions
from jepakit.optim import param_groups


class Student(nn.Module):
    """Encoder and predictor in one forward: DDP averages gradients of its own forward alone."""

    def __init__(self, image_size: tuple[int, ...]) -> None:
        super().__init__()
        backbone = timm.create_model(
            "vit_tiny_patch16_224", num_classes=0, img_size=image_size, patch_size=6,
            embed_dim=64, depth=4, num_heads=2,
        )  # fmt: skip
        self.encoder = MaskedViT(backbone)
        init_sincos_positions(self.encoder)
        self.predictor = MaskedPredictor(
            self.encoder.grid_size, 64, predictor_embed_dim=64, depth=2, num_heads=2
        )

    def forward(self, images: Tensor, masks: Masks) -> Tensor:
        context = self.encoder(images, masks.context)  # only the visible patches are computed
        return self.predictor(context, masks.context, masks.targets)


def main() -> None:
    args = parse_args()
    fabric = Fabric(devices=args.devices, precision="bf16-mixed" if args.bf16 else "32-true")
    fabric.launch()
    fabric.seed_everything(0)
    train, _ = load_images(args.data)
    standardise = PixelStatistics.from_dataset(train)

    student = Student(train[0][0].shape[1:])
    encoder = student.encoder
    teacher = fabric.to_device(EMATeacher(encoder, linear(0.98, 1.0, steps=args.steps)))
    optimizer = torch.optim.AdamW(param_groups(student, weight_decay=0.05))
    lr = warmup_cosine(2e-3, 1e-5, warmup_steps=args.steps // 10, steps=args.steps)
    student, optimizer = fabric.setup(student, optimizer)

    # The teacher counts the steps.
    state = {"student": student, "teacher": teacher, "optimizer": optimizer}
    checkpoint, unfinished = (Path(args.out, name) for name in ("last.ckpt", "unfinished.ckpt"))
    if checkpoint.exists():
        fabric.load(checkpoint, state)
        fabric.print(f"continues after step {teacher.step}")

    order = ResumableBatches(
        len(train), args.batch_size // fabric.world_size, steps=args.steps, seed=0,
        rank=fabric.global_rank, world_size=fabric.world_size, first_step=teacher.step,
    )  # fmt: skip
    collate = MaskCollator(MultiBlockMask(encoder.grid_size, num_targets=3), seed=0)
    loader = DataLoader(
        IndexedDataset(train), batch_sampler=order, collate_fn=collate, num_workers=args.workers
    )
    # The batches are this rank's already: nothing else may divide them.
    loader = fabric.setup_dataloaders(loader, use_distributed_sampler=False)

    for (images, _), masks in loader:
        images = standardise(images)
        # The loss is one mean over the targets of all ranks and micro-batches.
        num_targets = fabric.all_reduce(masks.targets.valid.sum(), reduce_op="sum")
        parts = torch.arange(len(images)).chunk(args.accumulate)
        losses, means = [], []
        for part in parts:
            x, m = images[part], masks[part]
            with fabric.no_backward_sync(student, enabled=part is not parts[-1]):
                with fabric.autocast():
                    features = teacher(x)
                    target = take_tokens(normalize_targets(features), m.targets)
                    pred = student(x, m)
                    total = masked_smooth_l1(pred, target, m.targets.valid, reduction="sum")
                # DDP divides by the number of ranks.
                loss = total * fabric.world_size / (num_targets * pred.shape[-1])
                fabric.backward(loss)
            losses.append(loss.detach())
            means.append(features.float().mean(dim=1))
        for group in optimizer.param_groups:
            group["lr"] = lr(teacher.step)
        optimizer.step()
        optimizer.zero_grad()
        teacher.update(encoder)  # once for each step of the optimiser

        step = teacher.step
        if step % 50 == 0:
            loss = fabric.all_reduce(torch.stack(losses).sum())
            rank = effective_rank(torch.cat(means))  # of the features: low if they collapse
            fabric.print(f"step {step}  loss {loss.item():.4f}  rank {rank.item():.1f}")
        if step % args.save_every == 0 or step == args.steps:
            fabric.save(unfinished, state)
            if fabric.is_global_zero:  # renamed, so that a killed run leaves a whole one
                os.replace(unfinished, checkpoint)
    if fabric.is_global_zero:
        torch.save(timm_state_dict(teacher), Path(args.out, "teacher.pth"))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", default="textures", help="textures, cifar10, an .npz file or an image folder")
    add("--steps", default=1500, type=int, help="steps of the optimiser")
    add("--batch-size", default=64, type=int, help="images in a step, of all processes together")
    add("--accumulate", default=1, type=int, help="micro-batches in a step")
    add("--devices", default=1, type=int, help="processes, with a GPU each where there are GPUs")
    add("--workers", default=0, type=int, help="loader processes of each process")
    add("--bf16", action="store_true", help="bfloat16 autocast")
    add("--save-every", default=100, type=int, help="steps between checkpoints")
    add("--out", default="fabric-out", help="folder for the checkpoint and the teacher")
    args = parser.parse_args()
    if args.batch_size % (args.devices * args.accumulate):
        parser.error("--batch-size: must be a multiple of --devices times --accumulate")
    return args


if __name__ == "__main__":
    main()
