"""LeJEPA on images, without teacher and predictor, in one file to copy and change.

By default it trains a small vision transformer on generated images of textured shapes, in a few
minutes on a CPU. The loss makes the features of several views of an image agree, and makes those of
each view follow a normal distribution. Then it compares the trained encoder with the untrained one
and with raw pixels, and writes pictures, the numbers (`result.json`) and a plain timm checkpoint to
`--out`. All random numbers of a step depend on the seed and the step alone, so a run that was
stopped and is started again with `--resume` ends with the same weights as one that was not.

    python examples/lejepa.py
    python examples/lejepa.py --objective vicreg --seed 1 --out vicreg-1
    python examples/lejepa.py --objective none --on-collapse raise    # agreement alone collapses
    python examples/lejepa.py --data cifar10 --patch-size 4 --flip --device cuda --amp --epochs 100
"""

import argparse
import json
import time
from collections.abc import Callable, Collection
from itertools import combinations
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader

import jepakit
from jepakit.checkpoints import StopRequest, check_can_save, load_checkpoint, save_checkpoint
from jepakit.data import PixelStatistics, ResumableBatches, load_images, random_crops
from jepakit.evaluation import Scores, evaluate
from jepakit.interop import timm_state_dict
from jepakit.losses import barlow, info_nce, invariance_loss, koleo, lejepa_loss, vicreg
from jepakit.optim import param_groups
from jepakit.plots import plot_curves, plot_patch_pca

OBJECTIVES = ("lejepa", "vicreg", "barlow", "info_nce", "koleo", "none")


def main() -> None:
    args = parse_args()
    console, out, device = Console(), Path(args.out), torch.device(args.device)
    out.mkdir(parents=True, exist_ok=True)
    train, test = load_images(args.data, image_size=args.image_size)
    if len(train[0]) == 1:  # the tables at the end compare features by labels
        raise SystemExit(
            f"--data {args.data}: must have labels, such as a subfolder for each class"
        )
    normalize, (channels, *size) = PixelStatistics.from_dataset(train), train[0][0].shape
    if channels == 1 and (args.colour or args.grey):
        raise SystemExit(f"--colour, --grey: the images of {args.data} have a single channel")
    torch.manual_seed(args.seed)
    steps = args.epochs * (len(train) // args.batch_size) if args.steps is None else args.steps

    # Models, masks, optimiser
    model_args: dict[str, Any] = dict(
        num_classes=0, in_chans=channels, img_size=tuple(size), patch_size=args.patch_size,
        embed_dim=args.width, depth=args.depth, num_heads=args.heads, dynamic_img_size=True,
    )  # fmt: skip
    # The weights' usual std of 0.02 is for models 1000 wide.
    weight_init = "jax" if args.init == "xavier" else ""
    backbone = timm.create_model("vit_tiny_patch16_224", weight_init=weight_init, **model_args)
    encoder = jepakit.MaskedViT(backbone).to(device)
    projector = mlp(args.width, args.hidden, args.projection).to(device)
    student = nn.ModuleDict({"encoder": encoder, "projector": projector})
    optimizer = torch.optim.AdamW(param_groups(student, args.weight_decay))
    lr = jepakit.warmup_cosine(args.lr, args.lr / 100, warmup_steps=steps // 10, steps=steps)

    def evaluated(encode: Callable[[Tensor], Tensor]) -> Scores:
        return evaluate(
            encode, train, test, prepare=normalize, k=args.neighbours,
            num_images=args.eval_images, num_workers=args.workers, device=device,
        )  # fmt: skip

    sample = torch.stack([train[i][0] for i in range(8)]).to(device)
    shape = " x ".join(map(str, (channels, *size)))
    console.print(f"{len(train)} images {shape}, grid {encoder.grid_size}, {steps} steps")
    with torch.no_grad():
        before = encoder(normalize(sample)).cpu()
    rows = {
        "raw pixels": evaluated(lambda images: images.flatten(1)),
        "untrained encoder": evaluated(encoder.extract_features),
    }

    # Training
    action = "record" if args.on_collapse == "ignore" else args.on_collapse
    monitor, collapses = jepakit.CollapseMonitor(action=action), []
    parts = {"student": student, "optimizer": optimizer, "monitor": monitor}
    curves: dict[str, list[tuple[int, float]]] = {"loss": [], "rank": [], "std": []}
    first, checkpoint = 0, out / "checkpoint.pt"
    if state := resumed_state(checkpoint, [*parts, "step", "curves", "collapses"], args):
        first, curves, collapses = state["step"], state["curves"], state["collapses"]
        console.print(f"resuming at step {first} of {steps}")
        for name, part in parts.items():
            part.load_state_dict(state[name])

    def state_at(step: int) -> dict[str, Any]:
        state: dict[str, Any] = {name: part.state_dict() for name, part in parts.items()}
        state |= {"step": step, "curves": curves, "collapses": collapses}
        return state | {"args": vars(args)}

    check_can_save(checkpoint, state_at(first))  # a full disk is found before training
    order = ResumableBatches(
        len(train), args.batch_size, steps=steps, seed=args.seed, first_step=first
    )
    loader = DataLoader(train, batch_sampler=order, num_workers=args.workers)
    began = time.perf_counter()
    with progress_bar(console) as bar, StopRequest() as stop:
        task = bar.add_task("", total=steps, completed=first, status="")
        for step, (images, _) in enumerate(loader, start=first):
            torch.manual_seed(args.seed + 1_000_003 * step)
            views = make_views(normalize(images.to(device)), args)
            with torch.autocast(device.type, torch.bfloat16, enabled=args.amp):
                # Rows are ordered by view, then by image: global views, then local ones.
                features = torch.cat([encoder.extract_features(same_size) for same_size in views])
                projections = projector(features).unflatten(0, (-1, len(images)))
            # The projections, which the loss compares, collapse before the features do.
            if collapse := monitor.update(projections[0].float(), step=step):
                collapses.append(
                    {"kind": collapse.kind, "since": collapse.first_step, "step": collapse.step}
                )
            loss = objective(projections.float(), args)
            for group in optimizer.param_groups:
                group["lr"] = lr(step)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

            done = step + 1
            if done % 10 == 0 or done == steps:
                one_view = features[: len(images)].detach().float()
                curves["loss"].append((done, loss.item()))
                curves["rank"].append((done, jepakit.effective_rank(one_view).item()))
                curves["std"].append((done, projections[0].detach().std(dim=0).mean().item()))
                speed = (done - first) * args.batch_size / (time.perf_counter() - began)
                status = "  ".join(f"{name} {points[-1][1]:.4g}" for name, points in curves.items())
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
    rows["trained encoder"] = evaluated(encoder.extract_features)
    table = Table("", f"kNN-{args.neighbours}", "linear probe", "effective rank", "feature std")
    for name, row in rows.items():
        table.add_row(
            name, f"{row.knn:.1%}", f"{row.linear:.1%}", f"{row.rank:.1f}", f"{row.std:.2f}"
        )
    console.print(table)
    versions = {"jepakit": jepakit.__version__, "torch": torch.__version__}
    result = {"settings": vars(args), "versions": versions, "rows": rows, "curves": curves}
    result |= {"steps": steps, "images": steps * args.batch_size, "train_images": len(train)}
    result |= {"seconds": seconds, "collapses": collapses}
    result["image_shape"] = channels, *size
    result["pixels"] = normalize.mean, normalize.std  # mean and std that standardise images
    (out / "result.json").write_text(json.dumps(result, indent=1))
    torch.save(timm_state_dict(encoder), out / "encoder.pth")
    plot_curves(curves).savefig(out / "curves.png", dpi=150)
    with torch.no_grad():
        patches = {"untrained": before, "trained": encoder(normalize(sample)).cpu()}
    shown = sample.cpu().float() / 255
    plot_patch_pca(shown, patches, encoder.grid_size).savefig(out / "pca.png", dpi=150)
    call = ", ".join(f"{key}={value!r}" for key, value in model_args.items())
    console.print(
        f"{result['images']} images in {seconds:.0f} s; pictures and result.json are in {out}. "
        f"The encoder:\ntimm.create_model('vit_tiny_patch16_224', {call}, "
        f"checkpoint_path='{out / 'encoder.pth'}')",
        soft_wrap=True,
        highlight=False,
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
    may_differ = {"resume", "out", "device", "workers", "save_every"}
    for name, value in vars(args).items():
        if name not in may_differ and state["args"].get(name) != value:
            raise SystemExit(
                f"--resume: {path} has {name}={state['args'].get(name)}, now it is {value}"
            )
    return state


def make_views(images: Tensor, args: argparse.Namespace) -> tuple[Tensor, ...]:
    """Global views at the size of the images, local views at half of it, each `[view * b, ...]`."""
    large = random_crops(
        images.repeat(args.global_views, 1, 1, 1), args.global_scale, flip=args.flip
    )
    views = [jitter(large, args)]
    if args.local_views:
        small = random_crops(
            images.repeat(args.local_views, 1, 1, 1), args.local_scale, flip=args.flip
        )
        patch = args.patch_size
        half = [-(-side // (2 * patch)) * patch for side in images.shape[-2:]]
        small = F.interpolate(small, half, mode="bilinear", antialias=True)
        views.append(jitter(small, args))
    return tuple(views)


def jitter(images: Tensor, args: argparse.Namespace) -> Tensor:
    """Random contrast, brightness, colour and noise for each image of standardised pixels."""
    contrast, brightness = (2 * torch.rand(2, len(images), 1, 1, 1) - 1).to(images)
    images = images * (args.contrast * contrast).exp() + args.brightness * brightness
    if args.colour:
        tint = 2 * torch.rand(*images.shape[:2], 1, 1) - 1
        images = images + args.colour * tint.to(images)
    if args.grey:
        chosen = torch.rand(len(images), 1, 1, 1) < args.grey
        images = torch.where(chosen.to(images.device), images.mean(dim=1, keepdim=True), images)
    return images + args.noise * torch.randn_like(images)


def objective(views: Tensor, args: argparse.Namespace) -> Tensor:
    """Loss of the projections `[view, image, dim]`, global views first."""
    name, num_global = args.objective, args.global_views
    if name == "lejepa":
        return lejepa_loss(
            views, weight=args.weight, num_global_views=num_global, num_slices=args.slices
        )
    if name == "none":
        return invariance_loss(views, num_global_views=num_global)
    if name == "koleo":
        # KoLeo compares directions, so agreement is that of directions too.
        units = F.normalize(views, dim=-1)
        apart = torch.stack([koleo(view) for view in units]).mean()
        return invariance_loss(units, num_global_views=num_global) + args.weight * apart
    # Losses of two views, averaged over all pairs with a global view.
    pair = {
        "vicreg": vicreg,
        "barlow": barlow,
        "info_nce": lambda x, y: info_nce(x, y, temperature=args.temperature, symmetric=True),
    }[name]
    pairs = [(i, j) for i, j in combinations(range(len(views)), 2) if i < num_global]
    return torch.stack([pair(views[i], views[j]) for i, j in pairs]).mean()


def mlp(width: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.GELU(),
        nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.GELU(),
        nn.Linear(hidden, out),
    )  # fmt: skip


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
    add("--patch-size", 6, "side of a patch in pixels")
    add("--init", "xavier", "initial weights of the encoder: suited to the width, or timm's",
        choices=("xavier", "timm"))  # fmt: skip
    add("--width", 64, "width of the encoder")
    add("--depth", 4, "number of encoder blocks")
    add("--heads", 2, "attention heads")
    add("--hidden", 256, "width of the projector's hidden layers")
    add("--projection", 64, "width of the projections, which the objective compares")
    add("--objective", "lejepa", "loss against collapse; none has agreement alone",
        choices=OBJECTIVES)  # fmt: skip
    add("--weight", 0.2, "weight of SIGReg in lejepa (convex) or of KoLeo in koleo (added)")
    add("--slices", 256, "random directions of SIGReg in each step")
    add("--temperature", 0.2, "temperature of info_nce")
    add("--global-views", 1, "number of views at full size")
    add("--local-views", 4, "number of views at half the size")
    add("--global-scale", (0.4, 1.0), "area of a global crop as a fraction of the image")
    add("--local-scale", (0.1, 0.4), "area of a local crop as a fraction of the image")
    add("--flip", False, "flip views horizontally at random")
    add("--contrast", 0.5, "largest change, as a logarithm")
    add("--brightness", 0.5, "largest change, in stds of the pixels")
    add("--colour", 0.0, "largest change of a single channel, in stds of the pixels")
    add("--grey", 0.0, "fraction of views that become grey")
    add("--noise", 0.4, "std of the noise, in stds of the pixels")
    add("--epochs", 8, "passes over the data")
    add("--steps", None, "number of steps, instead of --epochs", type=int)
    add("--batch-size", 64, "images per step")
    add("--lr", 2e-3, "peak learning rate")
    add("--weight-decay", 0.05, "weight decay of matrices")
    add("--eval-images", 3000, "largest number of images of each split to evaluate on")
    add("--neighbours", 20, "number of neighbours in kNN")
    add("--workers", 0, "number of loader processes")
    add("--device", "cuda" if torch.cuda.is_available() else "cpu", "device to train on")
    add("--amp", False, "bfloat16 autocast")
    add("--on-collapse", "warn", "action when projections collapse",
        choices=("warn", "raise", "ignore"))  # fmt: skip
    add("--seed", 0, "random seed")
    add("--save-every", 100, "steps between checkpoints")
    add("--resume", False, "continue from the checkpoint in --out, if there is one")
    add(
        "--out",
        "lejepa-out",
        "folder for the checkpoint, result.json, the encoder and the pictures",
    )
    args = parser.parse_args()
    used_by = {"weight": ("lejepa", "koleo"), "slices": ("lejepa",), "temperature": ("info_nce",)}
    for name, objectives in used_by.items():
        if args.objective not in objectives and getattr(args, name) != parser.get_default(name):
            users = " and ".join(objectives)
            parser.error(f"--{name}: has no effect with {args.objective}, only with {users}")
    if args.weight < 0:
        parser.error(f"--weight {args.weight}: must not be negative")
    if args.global_views < 1 or args.local_views < 0 or args.global_views + args.local_views < 2:
        parser.error(
            "--global-views, --local-views: must be at least two views, one of them global"
        )
    if not 0 <= args.grey <= 1:
        parser.error(f"--grey {args.grey}: must be from 0 to 1")
    if args.steps is not None and args.steps < 1:
        parser.error(f"--steps {args.steps}: must be at least 1")
    args.global_scale, args.local_scale = tuple(args.global_scale), tuple(args.local_scale)
    return args


if __name__ == "__main__":
    main()
