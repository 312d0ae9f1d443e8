"""I-JEPA at scale: one file to copy, for one process or for many GPUs on several machines.

    torchrun --standalone --nproc-per-node 8 examples/pretrain.py --data path/to/imagefolder \
        --image-size 224 --model vit_base_patch16_224 --amp --compile --workers 8 --out run-1
    torchrun --standalone --nproc-per-node 8 examples/pretrain.py --data 'shards/{000..255}.tar' \
        --image-size 224 --model vit_huge_patch14_224 --shard --checkpointing --amp --steps 300000
    python examples/pretrain.py --data cifar10 --model vit_tiny_patch16_224 --patch-size 4

DDP by default, FSDP2 with `--shard`. Learning rate, weight decay and teacher momentum follow
I-JEPA's published schedules. `--batch-size` is that of all processes together: with it the same,
any number of processes trains to the same weights, up to rounding.

A checkpoint is written every few minutes, and on SIGTERM or Ctrl-C. The same command with
`--resume` continues from the last complete one, also after `kill -9` and on another number of
processes (all must see `--out`): images, crops and masks are functions of seed, step and sample.
Shards are the exception: a stream begins a new pass, in another order and with new masks.

The result is a plain timm checkpoint of the teacher, `teacher.safetensors` in `--out`.
"""

import argparse
import hashlib
import importlib.util
import io
import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import timm
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, Subset
from torch.utils.flop_counter import FlopCounterMode

import jepakit
from jepakit import CollapseMonitor, EMATeacher, MaskCollator, MaskedPredictor, MaskedViT, Masks
from jepakit.checkpoints import load_checkpoint, save_checkpoint
from jepakit.data import PixelStatistics, ResumableBatches, load_images, random_crops
from jepakit.evaluation import Features, extract_features, knn_accuracy
from jepakit.interop import timm_state_dict
from jepakit.nn import init_sincos_positions
from jepakit.optim import param_groups

# (loss, normalisation of the targets) of I-JEPA's published code and of its paper.
RECIPES = {
    "code": (jepakit.masked_smooth_l1, "layer"),
    "paper": (jepakit.masked_mse, "none"),
}
IMAGENET = PixelStatistics(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
# TFLOP/s of dense bfloat16, by a part of the GPU's name.
PEAKS = {"B200": 2250, "H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121}
NUM_KEPT = 2  # checkpoints
# Options that a resumed run may change: they change the weights by rounding alone, or not at all.
MAY_DIFFER = {
    "resume", "out", "device", "workers", "shard", "compile", "checkpointing", "accumulate",
    "save_minutes", "save_every", "log", "log_every", "knn_every", "knn_images", "eval_data",
    "peak_tflops",
}  # fmt: skip


def main() -> None:
    args = parse_args()
    ranks = join(args.device)
    train_set, eval_sets, image_shape = load_data(args)
    args.steps = args.steps or args.epochs * (len(train_set) // args.batch_size)
    if args.steps == 0:
        ranks.fail(f"--batch-size {args.batch_size}: must be at most the {len(train_set)} images")
    if args.batch_size % (ranks.size * args.accumulate):
        ranks.fail(
            f"--batch-size {args.batch_size}: must be a multiple of {ranks.size} processes times "
            f"--accumulate {args.accumulate}"
        )
    normalize = PixelStatistics.from_dataset(train_set) if len(train_set) else IMAGENET
    run = Run(args, ranks, image_shape)
    knn = partial(knn_over_ranks, run, eval_sets, normalize) if eval_sets else lambda: None
    checkpoints, interruption = Checkpoints(run), Interruption()
    first = checkpoints.load() if args.resume else checkpoints.require_none()
    if first == 0:
        run.knn.append((0, knn()))  # of the untrained encoder
    ranks.say(
        f"step {first} of {args.steps}: {args.batch_size} images of {image_shape}, grid "
        f"{run.student.encoder.grid_size}, {run.flops / 1e9:.3g} GFLOP an image, on {ranks.size} "
        f"process(es) of {ranks.device}"
    )
    log, step, stopped = Log(run, first), first, None
    # Closed before the process ends: workers that ignore SIGTERM would keep it from ending.
    with closing(load_batches(run, train_set, first)) as batches:
        while step < args.steps and not stopped:
            images, masks = next(batches)
            images = normalize(images.to(ranks.device, non_blocking=True))
            loss = run.train_step(step, images, masks.to(ranks.device, non_blocking=True))
            step += 1
            is_last = step == args.steps
            if is_last or step % args.log_every == 0:
                log.training(step, loss)
            if is_last or step % args.knn_every == 0:
                run.knn.append((step, knn()))
                log.write(step, {"kNN": run.knn[-1][1]})
            stopped = checkpoints.save_if_due(step, interruption, is_last)
    if step < args.steps:
        ranks.say(f"stopped by {stopped.name} after step {step}; continue with --resume")
        leave(128 + stopped)
    save_teacher(run, log.speed)
    leave(0)


# Processes


@dataclass(frozen=True)
class Ranks:
    """The processes of a run; without torchrun there is one."""

    rank: int
    size: int
    device: torch.device

    def say(self, text: str) -> None:
        if self.rank == 0:
            print(text, flush=True)

    def fail(self, text: str) -> NoReturn:
        """End all processes, which have found the same error, with one message."""
        if self.rank == 0:
            print(f"{Path(__file__).name}: {text}", file=sys.stderr, flush=True)
        leave(1)

    def largest(self, *numbers: int) -> list[int]:
        """The largest of each number over all ranks, by way of the CPU."""
        joined = torch.tensor(numbers)
        dist.all_reduce(joined, op=dist.ReduceOp.MAX)
        return joined.tolist()

    def first(self, value: Any) -> Any:
        """The value of the first rank."""
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def checksums(self, folder: Path) -> dict[str, str]:
        """A digest of each tensor file of a folder; every rank reads its share of them."""
        found = {}
        for path in self.first(sorted(folder.glob("*.distcp")))[self.rank :: self.size]:
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "blake2b").hexdigest()
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, found)
        return {name: digest for part in parts for name, digest in part.items()}


def join(kind: str) -> Ranks:
    rank, size, local_rank = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    device = torch.device(kind, local_rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    store = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo", **store)
    return Ranks(rank, size, device)


def leave(code: int) -> NoReturn:
    dist.barrier()
    dist.destroy_process_group()
    raise SystemExit(code)


class Interruption:
    """Remembers SIGTERM and Ctrl-C, so that the step is finished and a checkpoint written.

    Unlike `jepakit.checkpoints.StopRequest`, it takes every signal: torchrun passes Ctrl-C on that
    the terminal has sent to all processes already, so each gets two.
    """

    def __init__(self) -> None:
        self.signal = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: Any) -> None:
        self.signal = number


# Data


def load_data(
    args: argparse.Namespace,
) -> tuple[Any, tuple[Any, Any] | None, tuple[int, int, int]]:
    """Training images, none for shards; labelled sets for kNN, if there are; an image's shape."""
    is_first = int(os.environ.get("LOCAL_RANK", 0)) == 0
    if not is_first:  # the first process of a machine may have to download
        dist.barrier()
    sets = None if is_stream(args) else load_images(args.data, image_size=args.image_size)
    eval_sets = load_images(args.eval_data, image_size=args.image_size) if args.eval_data else sets
    if is_first:
        dist.barrier()
    if eval_sets and len(eval_sets[0][0]) == 1:  # images without labels
        eval_sets = None
    if sets is None:
        return (), eval_sets, (3, args.image_size, args.image_size)
    return sets[0], eval_sets, tuple(sets[0][0][0].shape)


def is_stream(args: argparse.Namespace) -> bool:
    return ".tar" in args.data


def load_batches(run: "Run", train_set: Any, first: int) -> Iterator[tuple[Tensor, Masks]]:
    """This rank's part of each batch from step `first` on, with masks drawn in the workers."""
    args, ranks = run.args, run.ranks
    batch_size = args.batch_size // ranks.size
    options: dict[str, Any] = dict(
        num_workers=args.workers,
        worker_init_fn=ignore_signals,
        pin_memory=ranks.device.type == "cuda",
    )
    if is_stream(args):
        yield from stream_batches(run, batch_size, first, options)
    order = ResumableBatches(
        len(train_set), batch_size, steps=args.steps, seed=args.seed, first_step=first,
        rank=ranks.rank, world_size=ranks.size,
    )  # fmt: skip
    dataset = jepakit.IndexedDataset(RandomCrops(train_set, args))
    collate = MaskCollator(run.sampler, seed=args.seed)
    for (images, *_), masks in DataLoader(
        dataset, batch_sampler=order, collate_fn=collate, **options
    ):
        yield images, masks


class RandomCrops(Dataset[tuple[Any, ...]]):
    """A random crop of each image, a function of seed, epoch and index: the same on any rank."""

    def __init__(self, dataset: Any, args: argparse.Namespace) -> None:
        self.dataset = dataset
        self.args = args

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> tuple[Any, ...]:
        image, *label = self.dataset[index]
        return crop(image, self.args, f"{index.epoch} {int(index)}"), *label


def crop(image: Tensor, args: argparse.Namespace, key: str) -> Tensor:
    number = random.Random(f"{args.seed} {key}").getrandbits(63)
    generator = torch.Generator().manual_seed(number)
    images = random_crops(image[None].float(), args.crop_scale, flip=args.flip, generator=generator)
    return images[0].round().to(torch.uint8)


def stream_batches(
    run: "Run", batch_size: int, first: int, options: dict[str, Any]
) -> Iterator[tuple[Tensor, Masks]]:
    """Passes over the shards without end; every process and worker reads shards of its own."""
    import webdataset

    args = run.args
    collate = MaskCollator(run.sampler, seed=args.seed, key="key", collate_fn=stack_images)
    # No two passes of a run have the same number, resumed or not: each takes a step at least.
    for epoch in itertools.count(first):
        collate.set_epoch(epoch)
        shards = webdataset.WebDataset(
            args.data,
            nodesplitter=webdataset.split_by_node,
            shardshuffle=1000,
            seed=args.seed + epoch,
        )
        samples = shards.shuffle(1000).map(partial(decode, args=args, epoch=epoch))
        number = 0
        for batch in DataLoader(samples, batch_size, drop_last=True, collate_fn=collate, **options):
            yield batch
            number += 1
        if number == 0:  # for ever, otherwise
            raise ValueError(
                f"--data {args.data}: a pass has no batch of {batch_size} images for a loader "
                "process of this rank; give more images, or lower --batch-size or --workers"
            )


def decode(sample: dict[str, Any], args: argparse.Namespace, epoch: int) -> dict[str, Any]:
    from PIL import Image, ImageOps
    from torchvision.transforms.functional import pil_to_tensor

    content = next(sample[kind] for kind in ("jpg", "jpeg", "png", "webp") if kind in sample)
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    image = ImageOps.fit(image, (args.image_size, args.image_size), Image.Resampling.BILINEAR)
    key = sample["__key__"]
    return {"key": key, "image": crop(pil_to_tensor(image), args, f"{epoch} {key}")}


def stack_images(samples: list[dict[str, Any]]) -> Tensor:
    return torch.stack([sample["image"] for sample in samples])


def ignore_signals(worker: int) -> None:
    """In workers of the loader: the batches of the last steps are still needed."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def build_sampler(args: argparse.Namespace, grid_size: tuple[int, ...]) -> Any:
    return jepakit.MultiBlockMask(
        grid_size,
        num_targets=args.num_targets,
        min_context_coverage=args.min_context_coverage,
        # A stream has no step that the sizes of a batch could follow from.
        target_size_per="sample" if is_stream(args) else "batch",
    )


# Models


class Student(nn.Module):
    """Encoder and predictor in one forward: DDP averages gradients of its own forward alone."""

    def __init__(self, encoder: MaskedViT, predictor: MaskedPredictor) -> None:
        super().__init__()
        self.encoder = encoder
        self.predictor = predictor

    def forward(self, images: Tensor, masks: Masks) -> Tensor:
        context = self.encoder(images, masks.context)  # only the visible patches are computed
        return self.predictor(context, masks.context, masks.targets)


def model_arguments(args: argparse.Namespace, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    channels, *size = image_shape
    arguments = {"num_classes": 0, "in_chans": channels, "img_size": tuple(size)}
    return arguments | ({"patch_size": args.patch_size} if args.patch_size else {})


def build_encoder(args: argparse.Namespace, image_shape: tuple[int, int, int]) -> MaskedViT:
    encoder = MaskedViT(timm.create_model(args.model, **model_arguments(args, image_shape)))
    if isinstance(getattr(encoder.backbone, "pos_embed", None), nn.Parameter):
        init_sincos_positions(encoder)
    return encoder


class Run:
    """Student, teacher, optimiser and monitor, and one training step."""

    def __init__(
        self, args: argparse.Namespace, ranks: Ranks, image_shape: tuple[int, int, int]
    ) -> None:
        self.args, self.ranks, self.image_shape = args, ranks, image_shape
        self.knn: list[tuple[int, float | None]] = []
        torch.manual_seed(args.seed)
        encoder, steps = build_encoder(args, image_shape), args.steps
        self.sampler = build_sampler(args, encoder.grid_size)
        predictor = MaskedPredictor(
            encoder.grid_size,
            encoder.embed_dim,
            predictor_embed_dim=args.predictor_width,
            depth=args.predictor_depth,
            num_heads=args.predictor_heads,
        )
        self.student = Student(encoder, predictor).to(ranks.device)
        self.flops = prepare_and_count(self.student, image_shape, self.sampler)
        self.teacher = EMATeacher(encoder, jepakit.linear(*args.momentum, steps=steps))
        if args.checkpointing:
            encoder.set_grad_checkpointing()
            predictor.set_grad_checkpointing()
        modules = [encoder, predictor, self.teacher.module]
        if args.compile:  # block by block, so that gradients are sent while others are computed
            for block in itertools.chain.from_iterable(map(blocks_of, modules)):
                block.compile(dynamic=True)
        if args.shard:
            shard(modules, ranks)
            self.model = self.student
        else:
            devices = [ranks.device] if ranks.device.type == "cuda" else None
            self.model = DistributedDataParallel(self.student, device_ids=devices)
        self.optimizer = torch.optim.AdamW(param_groups(self.student, args.weight_decay[0]))
        self.lr = jepakit.warmup_cosine(
            args.lr, args.lr / 1000, warmup_steps=args.warmup_steps or max(1, steps // 10),
            steps=steps, start=args.lr / 5,
        )  # fmt: skip
        self.weight_decay = jepakit.cosine(*args.weight_decay, steps=steps)
        self.monitor = CollapseMonitor(
            action="warn" if ranks.rank == 0 else "record",
            every=10,
            process_group=dist.group.WORLD,
        )

    def train_step(self, step: int, images: Tensor, masks: Masks) -> Tensor:
        """Train on this rank's part of a batch; return its part of the loss."""
        args = self.args
        # Nothing draws from the global generator here, but drop-path would.
        torch.manual_seed((args.seed * 1_000_003 + step) * 1_009 + self.ranks.rank)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(step)
        self.optimizer.param_groups[0]["weight_decay"] = self.weight_decay(step)  # of the matrices
        loss, means = self.backward(images, masks)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.teacher.update(self.student.encoder)
        self.monitor.update(means, step=step)
        return loss

    def backward(self, images: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        """Gradient of one mean over the valid targets of all micro-batches and ranks."""
        args = self.args
        loss_fn, target_norm = RECIPES[args.recipe]
        num_targets = masks.targets.valid.sum()
        dist.all_reduce(num_targets)
        losses, means = [], []
        size = len(images) // args.accumulate
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            x, m = images[part], masks[part]
            with self.gradients_sent(start + size == len(images)):
                with self.autocast():
                    features = self.teacher(x)
                    target = jepakit.normalize_targets(features, target_norm)
                    target = jepakit.take_tokens(target, m.targets)
                    pred = self.model(x, m)
                    loss = loss_fn(pred, target, m.targets.valid, reduction="sum")
                    # DDP and FSDP2 divide by the number of ranks.
                    loss = loss * (self.ranks.size / (num_targets * pred.shape[-1]))
                loss.backward()
            losses.append(loss.detach())
            means.append(features.float().mean(dim=1))
        return torch.stack(losses).sum(), torch.cat(means)

    def autocast(self) -> AbstractContextManager[Any]:
        args = self.args
        return torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=args.amp)

    def gradients_sent(self, is_last: bool) -> AbstractContextManager[Any]:
        """Average gradients over the ranks after the last micro-batch alone."""
        if self.args.shard:
            for module in (self.student.encoder, self.student.predictor):
                module.set_requires_gradient_sync(is_last)
            return nullcontext()
        return nullcontext() if is_last else self.model.no_sync()

    def measurements(self, loss: Tensor) -> dict[str, float]:
        dist.all_reduce(loss)
        values = {
            "loss": loss.item() / self.ranks.size,
            "lr": self.optimizer.param_groups[0]["lr"],
            "weight decay": self.optimizer.param_groups[0]["weight_decay"],
            "momentum": self.teacher.momentum,
        }
        if self.monitor.history:  # none if features were never finite
            last = self.monitor.history[-1]
            values |= {"rank": last.rank, "std": last.std}
        return values


def prepare_and_count(student: Student, image_shape: tuple[int, ...], sampler: Any) -> float:
    """Freeze what features do not pass, such as heads; return the operations of a step per image.

    DDP stops at parameters without a gradient. Operations are those of matrix products, without
    those that checkpointing repeats.
    """
    parameter = next(student.parameters())
    images = torch.zeros(2, *image_shape, device=parameter.device, dtype=parameter.dtype)
    masks = sampler(2, generator=torch.Generator().manual_seed(0), device=parameter.device)
    # The kernels of other backends are not counted on every device.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        student(images, masks).sum().backward()
        with torch.no_grad():
            student.encoder(images)  # as the teacher does
    for parameter in student.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
    return counter.get_total_flops() / len(images)


def blocks_of(module: nn.Module) -> list[nn.Module]:
    return list(getattr(getattr(module, "backbone", module), "blocks", []))


def shard(modules: list[nn.Module], ranks: Ranks) -> None:
    """Shard each block, and what is left of each module, over all ranks."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # Nothing here writes to the outputs of a module.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    mesh = init_device_mesh(ranks.device.type, (ranks.size,))
    for module in modules:
        for block in blocks_of(module):
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)


# Checkpoints


class Checkpoints:
    """Folders `step-...` of torch.distributed.checkpoint, of which the newest is complete.

    A folder is written under another name and renamed when all ranks are done. A run that is killed
    while it writes leaves a folder that ends in .tmp, which is never read.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.ranks = run, run.ranks
        self.folder = Path(run.args.out) / "checkpoints"
        self.last_save = time.monotonic()

    def complete(self) -> list[Path]:
        """Oldest first, after what a killed run left is removed."""
        if self.ranks.rank == 0:
            for path in self.folder.glob("*.tmp"):
                shutil.rmtree(path)
        return self.ranks.first(sorted(self.folder.glob("step-*")))

    def require_none(self) -> int:
        if self.complete():
            self.ranks.fail(f"{self.folder} has checkpoints; add --resume or change --out")
        return 0

    def save_if_due(
        self, step: int, interruption: Interruption, is_last: bool
    ) -> signal.Signals | None:
        """Save if a rank was interrupted or it is time; return the signal."""
        args = self.run.args
        due = is_last or time.monotonic() - self.last_save > 60 * args.save_minutes
        due = due or (args.save_every > 0 and step % args.save_every == 0)
        # Clocks differ, and signals come at any time: all ranks must save after the same step.
        number, due = self.ranks.largest(interruption.signal, int(due))
        if due or number:
            self.save(step)
        return signal.Signals(number) if number else None

    def save(self, step: int) -> None:
        run, final = self.run, self.folder / f"step-{step:09d}"
        unfinished = final.with_suffix(".tmp")
        dcp.save(sharded_state(run), checkpoint_id=unfinished)
        checksums = self.ranks.checksums(unfinished)  # torch writes none
        if self.ranks.rank == 0:
            state = {"step": step, "args": vars(run.args), "knn": run.knn, "checksums": checksums}
            save_checkpoint(unfinished / "run.pt", state | {"monitor": run.monitor.state_dict()})
            os.replace(unfinished, final)
            for old in sorted(self.folder.glob("step-*"))[:-NUM_KEPT]:
                os.replace(old, old.with_suffix(".tmp"))  # never half of a folder that is read
                shutil.rmtree(old.with_suffix(".tmp"))
        self.last_save = time.monotonic()

    def load(self) -> int:
        """Load the newest checkpoint, if there is one; return the number of steps that are done."""
        complete = self.complete()
        if not complete:
            return 0
        run, path = self.run, complete[-1]
        try:
            keys = ("step", "args", "knn", "monitor", "checksums")
            state = load_checkpoint(path / "run.pt", keys=keys)
        except (ValueError, FileNotFoundError) as error:
            self.ranks.fail(f"--resume: {error}; or remove {path}, and the one before it is read")
        now = self.ranks.checksums(path)
        if damaged := sorted(name for name, _ in state["checksums"].items() ^ now.items()):
            rule = "missing, damaged or of another checkpoint"
            self.ranks.fail(
                f"--resume: {path / damaged[0]} is {rule}; remove {path}, and the one before it is "
                "read"
            )
        for name, value in vars(run.args).items():
            saved = state["args"].get(name)
            if name not in MAY_DIFFER and saved != value:
                self.ranks.fail(f"--resume: {path} has {name}={saved}, now it is {value}")
        tensors = sharded_state(run)
        dcp.load(tensors, checkpoint_id=path)
        set_state_dict(
            run.student,
            run.optimizer,
            model_state_dict=tensors["student"],
            optim_state_dict=tensors["optimizer"],
        )
        run.teacher.load_state_dict(tensors["teacher"])
        run.monitor.load_state_dict(state["monitor"])
        run.knn = state["knn"]
        return state["step"]


def sharded_state(run: Run) -> dict[str, Any]:
    """Names without wrappers, so that DDP, FSDP2 and any number of ranks load each other's."""
    student, optimizer = get_state_dict(run.student, run.optimizer)
    return {"student": student, "teacher": run.teacher.state_dict(), "optimizer": optimizer}


def save_teacher(run: Run, speed: dict[str, float]) -> None:
    """Write the encoder of the teacher as timm's own, and print how to load it."""
    args, out, knn = run.args, Path(run.args.out), run.knn
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(run.teacher.module, options=whole)
    if run.ranks.rank == 0:
        from safetensors.torch import save_file

        encoder = build_encoder(args, run.image_shape)
        encoder.load_state_dict(state)
        save_file(timm_state_dict(encoder), out / "teacher.safetensors")
        versions = {"jepakit": jepakit.__version__, "torch": torch.__version__}
        result = {"settings": vars(args), "versions": versions, "processes": run.ranks.size}
        result |= {"knn": knn, "image_shape": run.image_shape, "speed": speed}
        (out / "result.json").write_text(json.dumps(result, indent=1))
    if knn[-1][1] is not None:
        run.ranks.say(f"kNN {knn[-1][1]:.1%}, untrained {knn[0][1]:.1%}. The teacher:")
    arguments = model_arguments(args, run.image_shape).items()
    call = ", ".join(f"{name}={value!r}" for name, value in arguments)
    path = out / "teacher.safetensors"
    run.ranks.say(f"timm.create_model('{args.model}', {call}, checkpoint_path='{path}')")


# Measurement


def knn_over_ranks(run: Run, sets: tuple[Any, Any], normalize: Callable[[Tensor], Tensor]) -> float:
    """kNN accuracy of the teacher; every rank computes the features of its part of the images."""
    args, rank, size = run.args, run.ranks.rank, run.ranks.size

    def encode(images: Tensor) -> Tensor:
        with run.autocast():
            return run.teacher(images).mean(dim=1)

    features = []
    for dataset, most in zip(sets, args.knn_images, strict=True):
        count = min(most, len(dataset)) // size * size  # FSDP2 needs equally many calls on each
        # With a generator of its own, so that evaluation leaves the training's random numbers.
        loader = DataLoader(
            Subset(dataset, range(rank, count, size)), 256, generator=torch.Generator()
        )
        own = extract_features(encode, loader, prepare=normalize, device=run.ranks.device)
        parts: list[Any] = [None] * size
        dist.all_gather_object(parts, (own.x, own.y))
        features.append(Features(*(torch.cat(part) for part in zip(*parts, strict=True))))
    return knn_accuracy(*features, k=min(20, len(features[0])))


class Log:
    """Measurements of the first rank: to the console, and to TensorBoard or Weights & Biases."""

    def __init__(self, run: Run, first: int) -> None:
        self.run, self.speed, args = run, {}, run.args
        self.last_step, self.last_time = first, time.perf_counter()
        self.send: Callable[[dict[str, float], int], None] = lambda values, step: None
        if run.ranks.rank == 0 and args.log == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(args.out, purge_step=first)
            self.send = lambda values, step: [
                writer.add_scalar(name, value, step) for name, value in values.items()
            ]
        elif run.ranks.rank == 0 and args.log == "wandb":
            import wandb

            wandb.init(project="jepakit", id=Path(args.out).name, resume="allow", config=vars(args))
            self.send = wandb.log

    def write(self, step: int, values: dict[str, float | None]) -> None:
        values = {name: value for name, value in values.items() if value is not None}
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if shown and self.run.ranks.rank == 0:
            self.run.ranks.say(f"step {step}  {shown}")
            self.send(values, step)

    def training(self, step: int, loss: Tensor) -> None:
        values, now = self.run.measurements(loss), time.perf_counter()
        speed = self.run.args.batch_size * (step - self.last_step) / (now - self.last_time)
        self.last_step, self.last_time = step, now
        peak = peak_flops(self.run)
        share = {"share of peak": speed * self.run.flops / peak} if peak else {}
        self.speed = {"images/s": speed} | share
        self.write(step, values | self.speed)


def peak_flops(run: Run) -> float | None:
    """Operations per second of all devices together, if they are known."""
    args = run.args
    peak = args.peak_tflops
    if peak is None and run.ranks.device.type == "cuda" and args.amp:
        name = torch.cuda.get_device_name(run.ranks.device)
        peak = next((peak for part, peak in PEAKS.items() if part in name), None)
    return None if peak is None else peak * 1e12 * run.ranks.size


# Options


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def add(name: str, default: Any, help: str, **options: Any) -> None:
        kind = {} if isinstance(default, bool) or default is None else {"type": type(default)}
        if isinstance(default, tuple):
            kind = {"type": type(default[0]), "nargs": 2, "metavar": ("A", "B")}
        if isinstance(default, bool):
            options["action"] = "store_true"
        text = help if default in (None, False) else f"{help} (default: {default})"
        parser.add_argument(name, default=default, help=text, **{**kind, **options})

    add("--data", None, "image folder, .npz file, textures, cifar10, fashion_mnist, or WebDataset "
        "shards, 'shards/{000..255}.tar'", required=True)  # fmt: skip
    add("--eval-data", None, "labelled images for kNN, if not those of --data; not shards")
    add("--image-size", None, "side of an image in pixels; folders and shards need it", type=int)
    add("--crop-scale", (0.3, 1.0), "area of a random crop as a fraction of the image")
    add("--flip", False, "flip images horizontally at random")
    add("--workers", 0, "loader processes of each rank")
    add("--model", "vit_small_patch16_224", "name of a timm ViT")
    add("--patch-size", None, "side of a patch in pixels, if not the model's own", type=int)
    add("--predictor-width", 384, "width of the predictor")
    add("--predictor-depth", 6, "number of predictor blocks")
    add("--predictor-heads", 12, "attention heads of the predictor")
    add("--num-targets", 4, "target blocks per image")
    add("--min-context-coverage", 0.25, "context as a fraction of the grid")
    add("--recipe", "code", "loss and targets of I-JEPA's published code or of its paper",
        choices=RECIPES)  # fmt: skip
    add("--epochs", 100, "passes over the data")
    add("--steps", None, "number of steps, instead of --epochs; shards need it", type=int)
    add("--batch-size", 256, "images per step of all processes together")
    add("--accumulate", 1, "micro-batches per step")
    add("--lr", 1e-3, "peak learning rate; starts at a fifth, ends at a thousandth")
    add("--warmup-steps", None, "steps of rising learning rate (default: a tenth of all)", type=int)
    add("--weight-decay", (0.04, 0.4), "weight decay of matrices at the first and the last step")
    add("--momentum", (0.996, 1.0), "teacher momentum at the first and the last step")
    add("--seed", 0, "random seed")
    add("--shard", False, "FSDP2 instead of DDP")
    add("--amp", False, "bfloat16 autocast")
    add("--compile", False, "compile every block")
    add("--checkpointing", False, "compute activations again in the backward pass")
    add("--device", "cuda" if torch.cuda.is_available() else "cpu", "kind of device")
    add("--save-minutes", 20.0, "minutes between checkpoints")
    add("--save-every", 0, "steps between checkpoints, in addition")
    add("--resume", False, "continue from the last checkpoint in --out, if there is one")
    add("--log", "none", "also log to", choices=("none", "tensorboard", "wandb"))
    add("--log-every", 50, "steps between lines of the log")
    add("--knn-every", 5000, "steps between kNN accuracies of the teacher")
    add("--knn-images", (10_000, 2_000), "most images that vote, and that are classified")
    add("--peak-tflops", None, "peak of one device, to print its share", type=float)
    add("--out", "pretrain-out", "folder for checkpoints, teacher and logs")
    args = parser.parse_args()
    needed = {"tensorboard": args.log == "tensorboard", "wandb": args.log == "wandb"}
    needed["webdataset"] = is_stream(args)
    for package, is_needed in needed.items():
        if is_needed and importlib.util.find_spec(package) is None:
            parser.error(f"{package} is not installed: pip install {package}")
    if is_stream(args) and None in (args.steps, args.image_size):
        parser.error("--steps, --image-size: must be given with shards")
    counts = "epochs", "steps", "warmup_steps", "batch_size", "accumulate", "log_every", "knn_every"
    for name in counts:
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} {value}: must be at least 1")
    for name in ("crop_scale", "weight_decay", "momentum", "knn_images"):
        setattr(args, name, tuple(getattr(args, name)))
    return args


if __name__ == "__main__":
    main()
