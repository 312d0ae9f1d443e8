"""I-JEPA as a LightningModule, in one file to copy and change.

    python examples/trainers/lightning_module.py
    python examples/trainers/lightning_module.py --devices 2 --accumulate 2 --bf16

`--batch-size` is that of a step of the optimiser, all processes and micro-batches together. With it
the same, any `--devices` trains to the same weights, up to rounding. The same command continues
from the last checkpoint in `--out`, as if it had not been interrupted.

The result is a plain timm checkpoint of the teacher, `teacher.pth` in `--out`.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer, seed_everything
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


class IJEPA(LightningModule):
    def __init__(self, train: Any, args: argparse.Namespace) -> None:
        super().__init__()
        self.train_set, self.args = train, args
        self.standardise = PixelStatistics.from_dataset(train)
        self.student = Student(train[0][0].shape[1:])
        self.teacher = EMATeacher(self.student.encoder, linear(0.98, 1.0, steps=args.steps))

    def train_dataloader(self) -> "ResumableLoader":
        args, trainer = self.args, self.trainer
        order = ResumableBatches(
            len(self.train_set), args.batch_size // (trainer.world_size * args.accumulate),
            steps=args.steps * args.accumulate, seed=0,
            rank=trainer.global_rank, world_size=trainer.world_size,
        )  # fmt: skip
        sampler = MultiBlockMask(self.student.encoder.grid_size, num_targets=3)
        return ResumableLoader(
            IndexedDataset(self.train_set), batch_sampler=order,
            collate_fn=MaskCollator(sampler, seed=0), num_workers=args.workers,
        )  # fmt: skip

    def training_step(self, batch: Any, index: int) -> Tensor:
        (images, _), masks = batch
        images = self.standardise(images)
        features = self.teacher(images)
        target = take_tokens(normalize_targets(features), masks.targets)
        pred = self.student(images, masks)
        # The mean over the targets of all ranks, whose numbers may differ.
        group = dist.group.WORLD if self.trainer.world_size > 1 else None
        loss = masked_smooth_l1(pred, target, masks.targets.valid, process_group=group)
        if index % (50 * self.args.accumulate) == 0:
            rank = effective_rank(features.float().mean(dim=1))  # low if features collapse
            self.print(f"step {self.global_step}  loss {loss.item():.4f}  rank {rank.item():.1f}")
        return loss

    def configure_optimizers(self) -> Any:
        steps = self.args.steps
        optimizer = torch.optim.AdamW(param_groups(self.student, weight_decay=0.05), lr=1.0)
        # Lightning has no hook that is called once for each step of the optimiser.
        optimizer.register_step_post_hook(lambda *_: self.teacher.update(self.student.encoder))
        lr = warmup_cosine(2e-3, 1e-5, warmup_steps=steps // 10, steps=steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lr)  # factors of lr=1
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class ResumableLoader(DataLoader):
    """Its state, which Lightning saves and loads, is the number of batches that it has yielded.

    The batch sampler's own state is ahead of that where workers fetch in advance.
    """

    def __iter__(self) -> Iterator[Any]:
        self.state = self.batch_sampler.state_dict()
        for batch in super().__iter__():
            self.state["step"] += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return dict(self.state)

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.batch_sampler.load_state_dict(state)


class SaveLast(Callback):
    """Saves between steps of the optimiser, under another name until the file is whole.

    `ModelCheckpoint` would also save after the first micro-batch of a restarted run, whose gradient
    the next restart would lack.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every

    def on_train_batch_end(
        self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        in_window = (index + 1) % trainer.accumulate_grad_batches
        step = trainer.global_step
        if not in_window and (step % self.every == 0 or step == module.args.steps):
            unfinished = self.path.with_suffix(".unfinished")
            trainer.save_checkpoint(unfinished)
            if trainer.is_global_zero:
                os.replace(unfinished, self.path)


def main() -> None:
    args = parse_args()
    seed_everything(0)
    train, _ = load_images(args.data)
    module, last = IJEPA(train, args), Path(args.out, "last.ckpt")
    trainer = Trainer(
        devices=args.devices,
        max_epochs=1,  # the loader has the batches of the whole run
        accumulate_grad_batches=args.accumulate,
        precision="bf16-mixed" if args.bf16 else "32-true",
        use_distributed_sampler=False,  # the batches are each rank's already
        callbacks=[SaveLast(last, args.save_every)],
        enable_checkpointing=False,
        logger=False,
    )
    trainer.fit(module, ckpt_path=last if last.exists() else None)
    if trainer.is_global_zero:
        torch.save(timm_state_dict(module.teacher), Path(args.out, "teacher.pth"))


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
    add("--out", default="lightning-out", help="folder for the checkpoint and the teacher")
    args = parser.parse_args()
    if args.batch_size % (args.devices * args.accumulate):
        parser.error("--batch-size: must be a multiple of --devices times --accumulate")
    return args


if __name__ == "__main__":
    main()
