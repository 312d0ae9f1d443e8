"""I-JEPA on images, in one file to copy and change.

By default it trains a small vision transformer without labels on generated images of textured
shapes, in less than four minutes on 2 CPU cores. Then it compares the trained teacher with the
untrained encoder and with raw pixels, and writes pictures and a plain timm checkpoint to `--out`.

    python examples/ijepa.py
    python examples/ijepa.py --recipe code --seed 1 --out code-1
    python examples/ijepa.py --data cifar10 --patch-size 4 --device cuda --amp --epochs 100
    python examples/ijepa.py --data path/to/imagefolder --image-size 128 --patch-size 8

All random numbers of a step depend on the seed and the step alone, so an interrupted run that is
started again with `--resume` ends with the same weights as one that was never interrupted.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

import jepakit
from jepakit.checkpoints import StopRequest, check_can_save, load_checkpoint, save_checkpoint
from jepakit.data import PixelStatistics, ResumableBatches, load_images, random_crops
from jepakit.diagnostics import TargetRetrieval, feature_std, target_retrieval
from jepakit.evaluation import (
    Features,
    evaluate,
    extract_features,
    knn_accuracy,
    nearest_neighbours,
)
from jepakit.interop import timm_state_dict
from jepakit.losses import TargetCentering, vicreg
from jepakit.masking import ReferenceMultiBlockMask
from jepakit.nn import init_sincos_positions
from jepakit.optim import param_groups
from jepakit.plots import (
    plot_curves,
    plot_masks,
    plot_neighbours,
    plot_patch_pca,
    plot_retrieval,
)

Encode = Callable[[Tensor], Tensor]  # images [b c h w] to one feature vector each, [b d]
LOSSES = {
    "smooth_l1": jepakit.masked_smooth_l1,
    "mse": jepakit.masked_mse,
    "l1": jepakit.masked_l1,
    "cosine": jepakit.masked_cosine,
}
CENTRED = {"whiten": "whiten", "centre": "channel"}  # scale of TargetCentering
# (loss, normalisation of the targets): one that learns in minutes, that of I-JEPA's published code
# and that of its paper.
RECIPES = {"short": ("mse", "whiten"), "code": ("smooth_l1", "layer"), "paper": ("mse", "none")}


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
    torch.manual_seed(args.seed)
    steps = args.epochs * (len(train) // args.batch_size) if args.steps is None else args.steps

    # Models, masks, optimiser
    model_args: dict[str, Any] = dict(
        num_classes=0, in_chans=channels, img_size=tuple(size), patch_size=args.patch_size,
        embed_dim=args.width, depth=args.depth, num_heads=args.heads,
    )  # fmt: skip
    # The weights' usual std of 0.02 is for models 1000 wide. Blocks of a narrow one hardly change
    # their input then, and the first teacher has little that is worth predicting.
    weight_init = "jax" if args.init == "xavier" else ""
    backbone = timm.create_model("vit_tiny_patch16_224", weight_init=weight_init, **model_args)
    encoder = jepakit.MaskedViT(backbone).to(device)
    predictor = jepakit.MaskedPredictor(
        encoder.grid_size,
        encoder.embed_dim,
        predictor_embed_dim=args.predictor_width,
        depth=args.predictor_depth,
        num_heads=args.heads,
        joint=not args.separate,
    ).to(device)
    student = nn.ModuleDict({"encoder": encoder, "predictor": predictor})
    if args.init == "xavier":
        for layer in predictor.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
    if args.positions == "sincos":
        init_sincos_positions(encoder)
    untrained = copy.deepcopy(student).eval()
    teacher = jepakit.EMATeacher(encoder, jepakit.linear(*args.momentum, steps=steps))
    centre = TargetCentering(
        encoder.grid_size, encoder.embed_dim, scale=CENTRED.get(args.target_norm, "none")
    ).to(device)
    sampler = make_sampler(encoder.grid_size, args)
    optimizer = torch.optim.AdamW(param_groups(student, args.weight_decay), betas=(0.9, 0.95))
    lr = jepakit.warmup_cosine(args.lr, args.lr / 100, warmup_steps=steps // 10, steps=steps)
    monitor = jepakit.CollapseMonitor(every=10)
    loss_fn = LOSSES[args.loss]

    def normalize_features(features: Tensor) -> Tensor:
        if args.target_norm in CENTRED:  # against targets that are functions of position alone
            return centre(features)
        return jepakit.normalize_targets(features, args.target_norm)

    def compute_loss(images: Tensor, teacher_features: Tensor, masks: jepakit.Masks) -> Tensor:
        context = encoder(images, masks.context)  # only the visible patches are computed
        target = jepakit.take_tokens(normalize_features(teacher_features), masks.targets)
        pred = predictor(context, masks.context, masks.targets)
        loss = loss_fn(pred, target, masks.targets.valid)
        if args.vicreg_weight:  # C-JEPA: VICReg between mean features of student and teacher
            mean = jepakit.mean_tokens(context, masks.context)
            loss = loss + args.vicreg_weight * vicreg(mean, teacher_features.mean(dim=1))
        return loss

    if args.compile:
        compute_loss = torch.compile(compute_loss)

    # State: a new run, or the last checkpoint of an interrupted one
    parts = {"student": student, "teacher": teacher, "centre": centre}
    parts |= {"optimizer": optimizer, "monitor": monitor}
    curves: dict[str, list[tuple[int, float]]] = {"loss": [], "rank": [], "std": [], "kNN": []}
    first, checkpoint = 0, out / "checkpoint.pt"
    if state := resumed_state(checkpoint, [*parts, "step", "curves"], args):
        first, curves = state["step"], state["curves"]
        console.print(f"resuming at step {first} of {steps}")
        for name, part in parts.items():
            part.load_state_dict(state[name])
    else:
        shape = " x ".join(map(str, (channels, *size)))
        console.print(f"{len(train)} images {shape}, grid {encoder.grid_size}, {steps} steps")

    def state_at(step: int) -> dict[str, Any]:
        state: dict[str, Any] = {name: part.state_dict() for name, part in parts.items()}
        return state | {"step": step, "curves": curves, "args": vars(args)}

    check_can_save(checkpoint, state_at(first))  # a full disk is found before training

    def extracted(encode: Encode, dataset: Any, num_images: int) -> Features:
        """Features of the first images, which are in random order."""
        subset = Subset(dataset, range(min(num_images, len(dataset))))
        loader = DataLoader(subset, 256, num_workers=args.workers)
        return extract_features(encode, loader, prepare=normalize, device=device)

    # Training
    order = ResumableBatches(
        len(train), args.batch_size, steps=steps, seed=args.seed, first_step=first
    )
    loader = DataLoader(train, batch_sampler=order, num_workers=args.workers)
    began = time.perf_counter()
    with progress_bar(console) as bar, StopRequest() as stop:
        task = bar.add_task("", total=steps, completed=first, status="")
        for step, (images, _) in enumerate(loader, start=first):
            torch.manual_seed(args.seed + 1_000_003 * step)
            images = normalize(images.to(device))
            images = random_crops(images, args.crop_scale, flip=args.flip)
            masks = sampler(len(images), device=device)
            with torch.autocast(device.type, torch.bfloat16, enabled=args.amp):
                teacher_features = teacher(images)
                loss = compute_loss(images, teacher_features, masks)
            for group in optimizer.param_groups:
                group["lr"] = lr(step)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            teacher.update(encoder)
            means = teacher_features.float().mean(dim=1)
            monitor.update(means, step=step)  # warns if features collapse

            done = step + 1
            if done % 10 == 0 or done == steps:
                curves["loss"].append((done, loss.item()))
                curves["rank"].append((done, jepakit.effective_rank(means).item()))
                curves["std"].append((done, feature_std(means).mean().item()))
                if done % args.knn_every == 0 or done == steps:
                    encode = teacher.module.extract_features
                    pair = extracted(encode, train, 1000), extracted(encode, test, 500)
                    curves["kNN"].append((done, knn_accuracy(*pair, k=args.neighbours)))
                speed = (done - first) * args.batch_size / (time.perf_counter() - began)
                status = "  ".join(f"{name} {xs[-1][1]:.3g}" for name, xs in curves.items() if xs)
                status += f"  {speed:.0f} images/s"
                bar.update(task, completed=done, status=status)
                if not console.is_terminal and (done % max(1, steps // 200 * 10) == 0):
                    console.print(f"step {done}/{steps}  {status}")
            if stop or done % args.save_every == 0 or done == steps:
                save_checkpoint(checkpoint, state_at(done))
            if stop:  # Ctrl-C, or SIGTERM of a cluster
                console.print(f"stopped after step {done} of {steps}; continue with --resume")
                raise SystemExit(stop.exit_code)
    seconds = time.perf_counter() - began

    # Results
    encoders: dict[str, Encode] = {
        "raw pixels": lambda images: images.flatten(1),
        "untrained encoder": untrained.encoder.extract_features,
        "trained teacher": teacher.module.extract_features,
    }
    rows = {
        name: evaluate(
            encode, train, test, prepare=normalize, k=args.neighbours,
            num_images=args.eval_images, num_workers=args.workers, device=device,
        )
        for name, encode in encoders.items()
    }  # fmt: skip
    table = Table("", f"kNN-{args.neighbours}", "linear probe", "effective rank", "feature std")
    for name, row in rows.items():
        table.add_row(
            name, f"{row.knn:.1%}", f"{row.linear:.1%}", f"{row.rank:.1f}", f"{row.std:.2f}"
        )
    console.print(table)

    sample = torch.stack([test[i][0] for i in range(min(256, len(test)))])
    inputs = normalize(sample.to(device))
    torch.manual_seed(args.seed)
    masks = sampler(len(sample), device=device)

    @torch.no_grad()
    def retrieved(student: nn.Module, teacher: nn.Module) -> TargetRetrieval:
        """Search of the predictions for hidden blocks among the blocks of all sample images."""
        features = normalize_features(teacher(inputs))
        context = student.encoder(inputs, masks.context)
        pred = student.predictor(context, masks.context, masks.targets)
        return target_retrieval(pred, features, masks.targets, k=4)

    found = {
        "untrained": retrieved(untrained, untrained.encoder),
        "trained": retrieved(student.eval(), teacher),
    }
    correct = {name: each.accuracy.item() for name, each in found.items()}
    chance = found["trained"].chance.item()
    console.print(
        f"Hidden blocks: a prediction finds its own image among {len(sample)} in "
        f"{correct['trained']:.1%} of all cases (untrained {correct['untrained']:.1%}, "
        f"chance {chance:.1%}).\n"
        "kNN and linear probe classify frozen features: training works if the teacher is above\n"
        "the other rows. Features have collapsed if their std is below the untrained encoder's.",
        highlight=False,
        soft_wrap=True,
    )
    versions = {"jepakit": jepakit.__version__, "torch": torch.__version__}
    result = {"settings": vars(args), "versions": versions, "rows": rows, "curves": curves}
    result |= {"first_step": first, "steps": steps, "images": steps * args.batch_size}
    # Seconds of this call; those of a resumed run do not include the steps before it.
    result |= {"train_images": len(train), "seconds": seconds}
    result |= {"image_shape": (channels, *size), "retrieval": correct | {"chance": chance}}
    # Mean and std that standardise images; None where each is standardised on its own.
    result["pixels"] = None if normalize is standardise_each else (statistics.mean, statistics.std)
    (out / "result.json").write_text(json.dumps(result, indent=1))
    torch.save(timm_state_dict(teacher), out / "teacher.pth")

    # Pictures
    shown, masks = sample.float() / 255, masks.to("cpu")
    gallery = torch.stack([train[i][0] for i in range(min(5000, len(train)))])
    neighbours = {}
    for name, encode in encoders.items():
        searched, queries = extracted(encode, train, len(gallery)), extracted(encode, test, 6)
        neighbours[name] = nearest_neighbours(searched, queries, k=3)
    with torch.no_grad():
        patches = {"untrained": untrained.encoder(inputs).cpu(), "teacher": teacher(inputs).cpu()}
    pictures = {
        "masks": plot_masks(shown, masks),
        "curves": plot_curves(curves),
        "pca": plot_patch_pca(shown, patches, encoder.grid_size),
        "neighbours": plot_neighbours(
            shown[:6],
            gallery.float() / 255,
            neighbours,
            labels=queries.y,
            gallery_labels=searched.y,
        ),
        "retrieval": plot_retrieval(shown, masks, found["trained"].nearest.cpu()),
    }
    for name, figure in pictures.items():
        figure.savefig(out / f"{name}.png", dpi=150)
    call = ", ".join(f"{key}={value!r}" for key, value in model_args.items())
    console.print(
        f"{(steps - first) * args.batch_size} images in {seconds:.0f} s; pictures are in {out}. "
        f"The teacher:\ntimm.create_model('vit_tiny_patch16_224', {call}, "
        f"checkpoint_path='{out / 'teacher.pth'}')",
        soft_wrap=True,
        highlight=False,
    )


def standardise_each(images: Tensor) -> Tensor:
    """Standardise each channel of each image on its own: brightness and contrast are gone."""
    return F.instance_norm(images.float() / 255, eps=1e-3)


def make_sampler(grid_size: tuple[int, ...], args: argparse.Namespace) -> Any:
    blocks: dict[str, Any] = dict(num_targets=args.num_targets, target_scale=args.target_scale)
    if args.sampler == "reference":  # the published code's masks; see docs/what_masks_show.md
        return ReferenceMultiBlockMask(grid_size, **blocks)
    if args.context_length != "pad":  # nothing is cut
        blocks["context_subset"] = args.context_subset
    return jepakit.MultiBlockMask(
        grid_size,
        min_context_coverage=args.min_context_coverage,
        context_length=args.context_length,
        **blocks,
    )


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
    may_differ = {"resume", "out", "device", "workers", "save_every", "compile"}
    for name, value in vars(args).items():
        if name not in may_differ and state["args"].get(name) != value:
            raise SystemExit(
                f"--resume: {path} has {name}={state['args'].get(name)}, now it is {value}"
            )
    return state


def progress_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.completed}/{task.total}"),
        BarColumn(bar_width=20),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
        console=console,
        disable=not console.is_terminal,
    )


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
    add("--width", 64, "width of the encoder")
    add("--depth", 4, "number of encoder blocks")
    add("--heads", 2, "attention heads of encoder and predictor")
    add("--init", "xavier", "initial weights: suited to the width, or with a std of 0.02",
        choices=("xavier", "normal"))  # fmt: skip
    add("--positions", "sincos", "initial position embeddings: timm's, or sines and cosines",
        choices=("timm", "sincos"))  # fmt: skip
    add("--predictor-width", 64, "width of the predictor")
    add("--predictor-depth", 2, "number of predictor blocks")
    add("--separate", False, "predict each target block on its own, not all of an image jointly")
    add("--sampler", "multiblock", "mask sampler; reference is that of the published code",
        choices=("multiblock", "reference"))  # fmt: skip
    add("--num-targets", 3, "target blocks per image")
    add("--target-scale", (0.15, 0.25), "area of a target as a fraction of the grid")
    add("--min-context-coverage", 0.25, "smallest context as a fraction of the grid")
    add("--context-length", "fixed", "cut contexts to the least, or to the shortest, or pad them",
        choices=("fixed", "trim", "pad"))  # fmt: skip
    add("--context-subset", "nearest", "tokens that stay in a context that is cut",
        choices=("nearest", "random"))  # fmt: skip
    add(
        "--recipe",
        "short",
        "loss and targets for short runs, of I-JEPA's published code or of its paper",
        choices=RECIPES,
    )
    add("--loss", None, "loss, instead of the recipe's", choices=LOSSES)
    add(
        "--target-norm",
        None,
        "normalisation of the targets, instead of the recipe's",
        choices=(*CENTRED, "layer", "l2", "none"),
    )
    add("--vicreg-weight", 0.0, "weight of VICReg on mean features, added to the loss (C-JEPA)")
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
    add("--knn-every", 250, "steps between accuracies of nearest neighbours during training")
    add("--workers", 0, "number of loader processes")
    add("--device", "cuda" if torch.cuda.is_available() else "cpu", "device to train on")
    add("--amp", False, "bfloat16 autocast")
    add("--compile", False, "compile the computation of the loss")
    add("--seed", 0, "random seed")
    add("--save-every", 100, "steps between checkpoints")
    add("--resume", False, "continue from the checkpoint in --out, if there is one")
    add("--out", "ijepa-out", "folder for the checkpoint, the teacher and the pictures")
    args = parser.parse_args()
    context = [args.min_context_coverage, args.context_length, args.context_subset]
    if args.sampler == "reference" and context != [0.25, "fixed", "nearest"]:
        parser.error("--sampler reference: takes no --min-context-coverage and no --context-...")
    if args.vicreg_weight < 0:
        parser.error(f"--vicreg-weight {args.vicreg_weight}: must not be negative")
    if args.steps is not None and args.steps < 1:
        parser.error(f"--steps {args.steps}: must be at least 1")
    loss, norm = RECIPES[args.recipe]
    args.loss, args.target_norm = args.loss or loss, args.target_norm or norm
    args.momentum, args.crop_scale = tuple(args.momentum), tuple(args.crop_scale)
    args.target_scale = tuple(args.target_scale)
    return args


if __name__ == "__main__":
    main()
