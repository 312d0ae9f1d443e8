"""I-JEPA with Hugging Face's Accelerate, in one file to copy and change.

    python examples/trainers/accelerate_loop.py
    accelerate launch --num-processes 2 examples/trainers/accelerate_loop.py --accumulate 2 --bf16

`--batch-size` is that of a step of the optimiser, all processes and micro-batches together. With it
the same, any number of processes trains to the same weights, up to rounding. The same command
continues from the last checkpoint in `--out`, as if it had not been interrupted.

The result is a plain timm checkpoint of the teacher, `teacher.pth` in `--out`.
"""

import argparse
import os
import shutil
from pathlib import Path

import timm
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import set_seed
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
    accelerator = Accelerator(
        mixed_precision="bf16" if args.bf16 else "no", gradient_accumulation_steps=args.accumulate
    )
    world_size = accelerator.num_processes
    if args.batch_size % (world_size * args.accumulate):
        raise SystemExit("--batch-size: must be a multiple of processes times --accumulate")
    set_seed(0)
    train, _ = load_images(args.data)
    standardise = PixelStatistics.from_dataset(train)

    student = Student(train[0][0].shape[1:]).to(accelerator.device)
    encoder = student.encoder
    teacher = EMATeacher(encoder, linear(0.98, 1.0, steps=args.steps))
    optimizer = torch.optim.AdamW(param_groups(student, weight_decay=0.05))
    # Within a window of micro-batches, step() of the prepared optimiser does nothing.
    optimizer.register_step_post_hook(lambda *_: teacher.update(encoder))
    lr = warmup_cosine(2e-3, 1e-5, warmup_steps=args.steps // 10, steps=args.steps)
    student, optimizer = accelerator.prepare(student, optimizer)

    # The teacher counts the steps.
    accelerator.register_for_checkpointing(teacher)
    out = Path(args.out)
    for newest in sorted(out.glob("step-*"))[-1:]:
        accelerator.load_state(str(newest))
        accelerator.print(f"continues after {newest.name}")

    order = ResumableBatches(
        len(train), args.batch_size // (world_size * args.accumulate),
        steps=args.steps * args.accumulate, seed=0,
        rank=accelerator.process_index, world_size=world_size,
        first_step=teacher.step * args.accumulate,
    )  # fmt: skip
    collate = MaskCollator(MultiBlockMask(encoder.grid_size, num_targets=3), seed=0)
    # Not prepared: the batches are this rank's already, and would be divided again.
    loader = DataLoader(
        IndexedDataset(train), batch_sampler=order, collate_fn=collate, num_workers=args.workers
    )
    for (images, _), masks in loader:
        images = standardise(images.to(accelerator.device))
        masks = masks.to(accelerator.device)
        for group in optimizer.param_groups:
            group["lr"] = lr(teacher.step)
        with accelerator.accumulate(student):
            with accelerator.autocast():
                features = teacher(images)
                target = take_tokens(normalize_targets(features), masks.targets)
                pred = student(images, masks)
                # The mean over the targets of all ranks, whose numbers may differ.
                group = dist.group.WORLD if world_size > 1 else None
                loss = masked_smooth_l1(pred, target, masks.targets.valid, process_group=group)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()

        step = teacher.step
        if not accelerator.sync_gradients:
            continue
        if step % 50 == 0:
            rank = effective_rank(features.float().mean(dim=1))  # low if features collapse
            accelerator.print(f"step {step}  loss {loss.item():.4f}  rank {rank.item():.1f}")
        if step % args.save_every == 0 or step == args.steps:
            save(accelerator, out, step)
    if accelerator.is_main_process:
        torch.save(timm_state_dict(teacher), out / "teacher.pth")
    accelerator.end_training()


def save(accelerator: Accelerator, out: Path, step: int) -> None:
    """Write a folder and rename it when it is complete: a run that is killed leaves a whole one."""
    accelerator.save_state(str(out / "unfinished"))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        os.replace(out / "unfinished", out / f"step-{step:09d}")
        for old in sorted(out.glob("step-*"))[:-1]:
            shutil.rmtree(old)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", default="textures", help="textures, cifar10, an .npz file or an image folder")
    add("--steps", default=1500, type=int, help="steps of the optimiser")
    add("--batch-size", default=64, type=int, help="images in a step, of all processes together")
    add("--accumulate", default=1, type=int, help="micro-batches in a step")
    add("--workers", default=0, type=int, help="loader processes of each process")
    add("--bf16", action="store_true", help="bfloat16 autocast")
    add("--save-every", default=100, type=int, help="steps between checkpoints")
    add("--out", default="accelerate-out", help="folder for the checkpoint and the teacher")
    return parser.parse_args()


if __name__ == "__main__":
    main()
