"""H-JEPA on images, I-JEPA on every level of a pyramid, in one file to copy and change.

The features of student and teacher are pooled on the grid, level by level. Each level has a
predictor of its own, or all levels share one. With `--levels 1` it is I-JEPA; with
`--levels 1 --compare-levels 3` averages of its features are evaluated as the levels of a pyramid.

    python examples/hjepa.py
    python examples/hjepa.py --levels 1 --compare-levels 2 --out ijepa
    python examples/hjepa.py --levels 3 --patch-size 3 --fusion fpn-concat --seed 1
    python examples/hjepa.py --data path/to/imagefolder --image-size 128 --patch-size 8

At the end it prints the accuracies of every level, before and after training, and saves a picture
of the levels. A run that was stopped and is started again with `--resume` ends with the same
weights as one that was not.
"""

import argparse
import json
import time
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader

import jepakit
from jepakit import MultiBlockMask
from jepakit.checkpoints import StopRequest, check_can_save, load_checkpoint, save_checkpoint
from jepakit.data import PixelStatistics, ResumableBatches, load_images, random_crops
from jepakit.evaluation import Scores, evaluate
from jepakit.losses import (
    SoftOptimalWeights,
    TargetCentering,
    UncertaintyWeights,
    decay_weights,
)
from jepakit.masking import NestedMask
from jepakit.nn import Level, init_sincos_positions
from jepakit.optim import param_groups
from jepakit.plots import plot_curves, plot_patch_pca

LOSSES = {"smooth_l1": jepakit.masked_smooth_l1, "mse": jepakit.masked_mse}


class Student(nn.Module):
    """Encoder and pyramid in one module, so that the teacher averages both."""

    def __init__(self, encoder: jepakit.MaskedViT, pyramid: jepakit.HierarchicalPyramid) -> None:
        super().__init__()
        self.encoder = encoder
        self.pyramid = pyramid

    def forward(self, images: Tensor, context: jepakit.TokenSet | None = None) -> list[Level]:
        return self.pyramid(self.encoder(images, context), context)


def build_student(args: argparse.Namespace, channels: int, size: tuple[int, ...]) -> Student:
    backbone = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, in_chans=channels, img_size=size,
        patch_size=args.patch_size, embed_dim=args.width, depth=args.depth, num_heads=args.heads,
        weight_init="jax" if args.init == "xavier" else "",
    )  # fmt: skip
    encoder = jepakit.MaskedViT(backbone)
    if args.positions == "sincos":
        init_sincos_positions(encoder)
    pyramid = jepakit.HierarchicalPyramid(
        encoder.grid_size,
        encoder.embed_dim,
        num_levels=args.levels,
        pool=args.pool,
        fusion=None if args.fusion == "none" else args.fusion,
        projection="linear" if args.projection else None,
    )
    return Student(encoder, pyramid)


def standardise_each(images: Tensor) -> Tensor:
    """Standardise each channel of each image on its own: brightness and contrast are gone."""
    return F.instance_norm(images.float() / 255, eps=1e-3)


def main() -> None:
    args = parse_args()
    console, out, device = Console(), Path(args.out), torch.device(args.device)
    out.mkdir(parents=True, exist_ok=True)
    train, test = load_images(args.data, image_size=args.image_size)
    if len(train[0]) == 1:  # the tables at the end compare features by labels
        raise SystemExit(
            f"--data {args.data}: must have labels, such as a subfolder for each class"
        )
    statistics, (channels, *size) = PixelStatistics.from_dataset(train), train[0][0].shape
    normalize = standardise_each if args.standardise == "image" else statistics
    steps = args.epochs * (len(train) // args.batch_size) if args.steps is None else args.steps
    torch.manual_seed(args.seed)

    # Models, masks, optimiser
    student = build_student(args, channels, tuple(size)).to(device)
    encoder, pyramid = student.encoder, student.pyramid
    teacher = jepakit.EMATeacher(student, jepakit.linear(*args.momentum, steps=steps))
    predictor = partial(
        jepakit.MaskedPredictor,
        encoder_dim=encoder.embed_dim,
        predictor_embed_dim=args.predictor_width,
        depth=args.predictor_depth,
        num_heads=args.heads,
    )
    if args.shared_predictor:  # the grid of the targets identifies the level
        predictors = [predictor(encoder.grid_size, num_levels=args.levels)] * args.levels
    else:
        predictors = [predictor(grid) for grid in pyramid.grid_sizes]
    predictors = nn.ModuleList(predictors).to(device)
    if args.init == "xavier":
        for layer in predictors.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
    centres = nn.ModuleList(
        TargetCentering(grid, encoder.embed_dim, scale="whiten") for grid in pyramid.grid_sizes
    ).to(device)
    # Blocks that are whole on every level, so that no target cell of any level is in the context.
    coarsest = tuple(-(-side // 2 ** (args.mask_levels - 1)) for side in encoder.grid_size)
    sampler = NestedMask(
        encoder.grid_size,
        MultiBlockMask(
            coarsest,
            num_targets=args.num_targets,
            target_scale=args.target_scale,
        ),
    )
    weights = level_weights(args.weights, args.levels)
    learned = nn.ModuleList([student, predictors])
    if isinstance(weights, nn.Module):
        learned.append(weights.to(device))
    optimizer = torch.optim.AdamW(param_groups(learned, args.weight_decay), betas=(0.9, 0.95))
    lr = jepakit.warmup_cosine(args.lr, args.lr / 100, warmup_steps=steps // 10, steps=steps)
    monitors = [jepakit.CollapseMonitor(action="record", every=10) for _ in range(args.levels)]

    def compute_loss(images: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The loss, that of each level, and the teacher's mean features of level 0."""
        masks = sampler(len(images), device=device)
        preds, targets, valids, means = [], [], [], []
        levels = zip(predictors, student(images, masks.context), teacher(images), strict=True)
        for level, (predictor, student_level, (teacher_features, _)) in enumerate(levels):
            means.append(teacher_features.float().mean(dim=1))
            if collapse := monitors[level].update(means[level], step=step):
                console.print(f"[yellow]Level {level}: {collapse}")
            target_tokens = masks.coarsen(level).targets
            # A level has room for every cell that a context could touch; most of it is padding.
            features, context = student_level.trimmed()
            preds.append(predictor(features, context, target_tokens))
            if args.target_norm == "whiten":
                target = centres[level](teacher_features)
            else:
                target = jepakit.normalize_targets(teacher_features, args.target_norm)
            targets.append(jepakit.take_tokens(target, target_tokens))
            valids.append(target_tokens.valid)
        loss_fn = LOSSES[args.loss]
        loss, parts = jepakit.hierarchical_loss(
            preds, targets, valids, weights=weights, loss=loss_fn
        )
        return loss, parts, means[0]

    score = partial(
        evaluate, train=train, test=test, prepare=normalize, k=args.neighbours,
        num_images=args.eval_images, device=device,
    )  # fmt: skip

    plain = jepakit.HierarchicalPyramid(
        encoder.grid_size, encoder.embed_dim, num_levels=args.compare_levels
    )

    def describe(images: Tensor, level: int) -> Tensor:
        """Features of one level: the mean of the finest, the concatenated cells of a coarser one.

        The mean of a coarser level says little: with average pooling it is that of the finest.
        """
        is_trained = level < args.levels
        levels = teacher(images) if is_trained else plain(teacher.module.encoder(images))
        return levels[level].features.flatten(1) if level else levels[0].features.mean(dim=1)

    def scores() -> list[Scores]:
        return [score(partial(describe, level=level)) for level in range(args.compare_levels)]

    def features_on_finest_grid() -> list[Tensor]:
        """Features of every level, repeated over the patches that a cell covers."""
        maps = []
        for level, (features, _) in enumerate(teacher(normalize(sample))):
            cells = features.cpu().unflatten(1, pyramid.grid_sizes[level])
            for axis, side in enumerate(encoder.grid_size, start=1):
                cells = cells.repeat_interleave(2**level, axis).narrow(axis, 0, side)
            maps.append(cells.flatten(1, 2))
        return maps

    sample = torch.stack([train[i][0] for i in range(6)]).to(device)
    console.print(f"{len(train)} images, levels {pyramid.grid_sizes}, {steps} steps")
    rows = {
        "raw pixels": [score(lambda images: images.flatten(1))],
        "untrained": scores(),
    }
    pictures = {
        f"untrained, {level}": cells for level, cells in enumerate(features_on_finest_grid())
    }

    # Training
    parts = {"learned": learned, "teacher": teacher, "centres": centres, "optimizer": optimizer}
    parts |= {f"monitor {level}": monitor for level, monitor in enumerate(monitors)}
    curves: dict[str, list[tuple[int, float]]] = {}
    first, checkpoint = 0, out / "checkpoint.pt"
    if state := resumed_state(checkpoint, [*parts, "step", "curves"], args):
        first, curves = state["step"], state["curves"]
        console.print(f"resuming at step {first} of {steps}")
        for name, part in parts.items():
            part.load_state_dict(state[name])

    def state_at(step: int) -> dict[str, Any]:
        state: dict[str, Any] = {name: part.state_dict() for name, part in parts.items()}
        return state | {"step": step, "curves": curves, "args": vars(args)}

    check_can_save(checkpoint, state_at(first))  # a full disk is found before training
    order = ResumableBatches(
        len(train), args.batch_size, steps=steps, seed=args.seed, first_step=first
    )
    loader = DataLoader(train, batch_sampler=order, num_workers=args.workers)
    began = time.perf_counter()
    shown_loader = track(loader, "", console=console, disable=not console.is_terminal)
    with StopRequest() as stop:
        for step, (images, _) in enumerate(shown_loader, start=first):
            # Seeded in every step, so that runs with other levels draw the same masks.
            torch.manual_seed(args.seed + 1_000_003 * step)
            images = normalize(images.to(device))
            images = random_crops(images, args.crop_scale, flip=args.flip)
            with torch.autocast(device.type, torch.bfloat16, enabled=args.amp):
                loss, level_losses, means = compute_loss(images, step)
            for group in optimizer.param_groups:
                group["lr"] = lr(step)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            teacher.update(student)
            if step % 20 == 0 or step == steps - 1:
                rank = jepakit.effective_rank(means)
                for name, value in {"loss": loss, **level_losses, "rank": rank}.items():
                    curves.setdefault(name, []).append((step, value.item()))
            if step % max(1, steps // 10) == 0 and not console.is_terminal:
                console.print(f"step {step}/{steps}  loss {loss.item():.4f}")
            done = step + 1
            if stop or done % args.save_every == 0 or done == steps:
                save_checkpoint(checkpoint, state_at(done))
            if stop:  # Ctrl-C, or SIGTERM of a cluster
                console.print(f"stopped after step {done} of {steps}; continue with --resume")
                raise SystemExit(stop.exit_code)
    seconds = time.perf_counter() - began

    # Results
    rows["trained"] = scores()
    columns = ("level", f"kNN-{args.neighbours}", "linear probe", "effective rank", "std")
    table = Table("", *columns)
    for name, levels in rows.items():
        for level, row in enumerate(levels):
            cells = f"{row.knn:.1%}", f"{row.linear:.1%}", f"{row.rank:.1f}", f"{row.std:.2f}"
            label = str(level) if level < args.levels else f"{level} (averaged)"
            table.add_row(name, "" if name == "raw pixels" else label, *cells)
    console.print(table)
    pictures |= {
        f"teacher, {level}": cells for level, cells in enumerate(features_on_finest_grid())
    }
    shown = sample.cpu().float() / 255
    plot_patch_pca(shown, pictures, encoder.grid_size).savefig(out / "levels.png", dpi=150)
    plot_curves(curves).savefig(out / "curves.png", dpi=150)
    torch.save(teacher.module.state_dict(), out / "teacher.pth")
    losses = {name: points[-1][1] for name, points in curves.items() if name != "rank"}
    versions = {"jepakit": jepakit.__version__, "torch": torch.__version__}
    result = {"settings": vars(args), "versions": versions, "rows": rows, "curves": curves}
    result |= {"steps": steps, "images": steps * args.batch_size, "train_images": len(train)}
    result |= {"seconds": seconds, "losses": losses}
    result["image_shape"] = channels, *size
    # Mean and std that standardise images; None where each is standardised on its own.
    result["pixels"] = None if normalize is standardise_each else (statistics.mean, statistics.std)
    if isinstance(weights, UncertaintyWeights):
        result["level_weights"] = weights.weights.tolist()
    (out / "result.json").write_text(json.dumps(result, indent=1))
    console.print(f"{steps * args.batch_size} images in {seconds:.0f} s; see {out}")


def resumed_state(path: Path, keys: Collection[str], args: argparse.Namespace) -> Any:
    """State of the last checkpoint with `--resume`, or None if there is none."""
    if not args.resume:
        return None
    if not path.exists():
        print(f"--resume: there is no {path}, so training begins at step 0")
        return None
    try:
        state = load_checkpoint(path, keys=[*keys, "args"], map_location=args.device)
    except ValueError as error:
        raise SystemExit(f"--resume: {error}; or train anew without --resume") from error
    may_differ = {"resume", "out", "device", "workers", "save_every"}
    for name, value in vars(args).items():
        if name not in may_differ and state["args"].get(name) != value:
            raise SystemExit(
                f"--resume: {path} has {name}={state['args'].get(name)}, now it is {value}"
            )
    return state


def level_weights(kind: str, num_levels: int) -> Any:
    if kind in ("fine", "coarse"):
        return decay_weights(num_levels, heaviest=kind)
    if kind == "softmax":
        # At a temperature of 1 the smallest of losses below 0.1 would take nearly all the weight.
        return SoftOptimalWeights(temperature=10.0)
    return UncertaintyWeights(num_levels) if kind == "learned" else None


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def add(name: str, default: Any, help: str, **options: Any) -> None:
        kind = {} if isinstance(default, bool) or default is None else {"type": type(default)}
        if isinstance(default, tuple):
            kind = {"type": float, "nargs": 2, "metavar": ("LOW", "HIGH")}
        if isinstance(default, bool):
            options["action"] = "store_true"
        text = help if default in (None, False) else f"{help} (default: {default})"
        parser.add_argument(name, default=default, help=text, **{**kind, **options})

    add("--data", "textures", "textures, cifar10, fashion_mnist, an .npz file or an image folder")
    add("--image-size", None, "resize to this many pixels", type=int)
    add("--standardise", "image", "mean 0 and std 1 of each image's channels, or those of the data",
        choices=("image", "dataset"))  # fmt: skip
    add("--patch-size", 6, "side of a patch in pixels")
    add("--levels", 2, "levels of the pyramid; 1 is I-JEPA")
    add("--pool", "avg", "pooling of the pyramid", choices=("avg", "max", "conv", "attention"))
    add(
        "--fusion",
        "none",
        "fusion of the pyramid's levels",
        choices=("none", "fpn-add", "fpn-concat"),
    )
    add("--projection", False, "add a linear map to each level")
    add(
        "--weights",
        "equal",
        "weights of the levels in the loss",
        choices=("equal", "fine", "coarse", "softmax", "learned"),
    )
    add("--width", 64, "width of the encoder")
    add("--depth", 4, "number of encoder blocks")
    add("--heads", 2, "attention heads of encoder and predictors")
    add("--init", "xavier", "initial weights: suited to the width, or with a std of 0.02",
        choices=("xavier", "normal"))  # fmt: skip
    add("--positions", "sincos", "initial position embeddings: timm's, or sines and cosines",
        choices=("timm", "sincos"))  # fmt: skip
    add("--predictor-width", 64, "width of the predictors")
    add("--predictor-depth", 2, "number of blocks of a predictor")
    add("--shared-predictor", False, "use one predictor for all levels")
    add("--num-targets", 3, "target blocks per image")
    add("--target-scale", (0.15, 0.25), "area of a target as a fraction of the grid")
    add("--mask-levels", None, "levels on which blocks are whole (default: --levels)", type=int)
    add(
        "--compare-levels",
        None,
        "levels to evaluate; beyond --levels those of averaged features (default: --levels)",
        type=int,
    )
    add("--loss", "mse", "loss of a level", choices=LOSSES)
    add("--target-norm", "whiten", "normalisation of the targets",
        choices=("whiten", "layer", "l2", "none"))  # fmt: skip
    add("--momentum", (0.98, 1.0), "teacher momentum at the first and the last step")
    add("--epochs", 12, "passes over the data")
    add("--steps", None, "number of steps, instead of --epochs", type=int)
    add("--batch-size", 64, "images per step")
    add("--lr", 2e-3, "peak learning rate")
    add("--weight-decay", 0.05, "weight decay of matrices")
    add("--crop-scale", (1.0, 1.0), "area of a random crop as a fraction of the image")
    add("--flip", False, "flip images horizontally at random")
    add("--eval-images", 3000, "largest number of images of each split to evaluate on")
    add("--neighbours", 20, "number of neighbours in kNN")
    add("--workers", 0, "number of loader processes")
    add("--device", "cuda" if torch.cuda.is_available() else "cpu", "device to train on")
    add("--amp", False, "bfloat16 autocast")
    add("--seed", 0, "random seed")
    add("--save-every", 100, "steps between checkpoints")
    add("--resume", False, "continue from the checkpoint in --out, if there is one")
    add(
        "--out", "hjepa-out", "folder for the checkpoint, the teacher, the pictures and result.json"
    )
    args = parser.parse_args()
    for name in ("mask_levels", "compare_levels"):
        given = getattr(args, name)
        setattr(args, name, args.levels if given is None else given)
        if given is not None and given < args.levels:
            parser.error(f"--{name.replace('_', '-')} {given}: must be at least --levels")
    for name in ("weights", "pool", "fusion", "shared_predictor"):
        if args.levels == 1 and getattr(args, name) != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')}: has no effect with --levels 1")
    if args.steps is not None and args.steps < 1:
        parser.error(f"--steps {args.steps}: must be at least 1")
    args.momentum, args.crop_scale = tuple(args.momentum), tuple(args.crop_scale)
    args.target_scale = tuple(args.target_scale)
    return args


if __name__ == "__main__":
    main()
