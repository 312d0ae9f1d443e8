"""V-JEPA on clips, in one file to copy and change.

By default it trains a small vision transformer without labels on generated clips of ten ways to
move, in a few minutes on 2 CPU cores. Single frames do not show the class. Then it compares the
trained teacher with the untrained encoder, with the pixels of a clip and with those of one frame,
and writes pictures and the teacher's weights to `--out`.

    python examples/vjepa.py
    python examples/vjepa.py --target-layers 1 3 --seed 1 --out deep-1
    python examples/vjepa.py --sampler vjepa --target-norm layer --loss l1
    python examples/vjepa.py --data clips.npz --device cuda --amp
    python examples/vjepa.py --data path/to/videos --num-frames 16 --image-size 112 --patch-size 16

A folder of videos is read by PyAV (pip install av). All random numbers of a step depend on the seed
and the step alone, so an interrupted run that is started again with `--resume` ends with the same
weights as one that was never interrupted.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

import jepakit
from jepakit.checkpoints import StopRequest, check_can_save, load_checkpoint, save_checkpoint
from jepakit.data import ResumableBatches, load_clips
from jepakit.diagnostics import feature_std
from jepakit.evaluation import Features, attentive_probe, extract_features, knn_accuracy
from jepakit.losses import TargetCentering
from jepakit.masking import vjepa_masks
from jepakit.nn import TokenViT, Tubelets
from jepakit.optim import param_groups
from jepakit.plots import plot_curves, plot_masks, plot_patch_pca

Encode = Callable[[Tensor], Tensor]  # clips [b c t h w] to features [b n d]
CENTRED = {"whiten": "whiten", "centre": "channel"}  # scale of TargetCentering


def main() -> None:
    args = parse_args()
    console, out, device = Console(), Path(args.out), torch.device(args.device)
    out.mkdir(parents=True, exist_ok=True)
    sizes = dict(num_frames=args.num_frames, frame_step=args.frame_step, image_size=args.image_size)
    train, test = load_clips(args.data, **sizes)
    if len(train[0]) == 1:  # the tables at the end compare features by labels
        raise SystemExit(
            f"--data {args.data}: must have labels, such as a subfolder for each class"
        )
    channels, *size = train[0][0].shape
    torch.manual_seed(args.seed)
    steps = args.epochs * (len(train) // args.batch_size) if args.steps is None else args.steps

    # Models, masks, optimiser
    tubelet = (args.tubelet_frames, args.patch_size, args.patch_size)
    embed = Tubelets(tubelet, args.width, channels)
    grid = embed.grid_size_of(size)
    encoder = TokenViT(
        grid, args.width, args.depth, args.heads, embed=embed, position=args.positions
    ).to(device)
    layers = sorted(args.target_layers or [args.depth - 1])
    predictor = jepakit.MaskedPredictor(
        grid,
        args.width,
        predictor_embed_dim=args.predictor_width,
        depth=args.predictor_depth,
        num_heads=args.heads,
        position=args.positions,
        joint=True,
        num_mask_tokens=2,
        out_dim=args.width * len(layers),
    ).to(device)
    student = nn.ModuleDict({"encoder": encoder, "predictor": predictor})
    # The usual std of 0.02 is for models 1000 wide. Blocks of a narrow one hardly change their
    # input then, and the first teacher has little that is worth predicting.
    for module in student.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    untrained = copy.deepcopy(encoder).eval()
    teacher = jepakit.EMATeacher(encoder, jepakit.linear(*args.momentum, steps=steps))
    centres = nn.ModuleList(
        TargetCentering(grid, args.width, scale=CENTRED.get(args.target_norm, "none"))
        for _ in layers
    ).to(device)
    sampler = make_sampler(grid, args)
    optimizer = torch.optim.AdamW(param_groups(student, args.weight_decay), betas=(0.9, 0.95))
    lr = jepakit.warmup_cosine(args.lr, args.lr / 100, warmup_steps=steps // 10, steps=steps)
    monitor = jepakit.CollapseMonitor(every=10)

    @torch.no_grad()
    def targets_of(clips: Tensor) -> tuple[Tensor, Tensor]:
        """Targets `[b N (layers d)]`, each layer normalised on its own, and the last features."""
        numbers = sorted({*layers, args.depth - 1})
        features = teacher.module.forward_intermediates(clips, numbers, norm=True)
        chosen = [x for number, x in zip(numbers, features, strict=True) if number in layers]
        if args.target_norm in CENTRED:  # against targets that are functions of position alone
            chosen = [centre(x) for centre, x in zip(centres, chosen, strict=True)]
        else:
            chosen = [jepakit.normalize_targets(x, args.target_norm) for x in chosen]
        return torch.cat(chosen, dim=-1), features[-1]

    def compute_loss(clips: Tensor, targets: Tensor, sets: list[jepakit.Masks]) -> Tensor:
        """Mean of the losses of the mask sets, each with a mask token of its own."""
        losses = []
        for number, masks in enumerate(sets):
            context = encoder(clips, masks.context)  # only the visible tubelets are computed
            pred = predictor(context, masks.context, masks.targets, mask_token=number)
            target = jepakit.take_tokens(targets, masks.targets)
            losses.append(LOSSES[args.loss](pred, target, masks.targets.valid))
        return torch.stack(losses).mean()

    # State: a new run, or the last checkpoint of an interrupted one
    parts = {"student": student, "teacher": teacher, "centres": centres}
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
        console.print(f"{len(train)} clips {shape}, grid {grid}, {steps} steps")

    def state_at(step: int) -> dict[str, Any]:
        state: dict[str, Any] = {name: part.state_dict() for name, part in parts.items()}
        return state | {"step": step, "curves": curves, "args": vars(args)}

    check_can_save(checkpoint, state_at(first))  # a full disk is found before training

    def extracted(encode: Encode, dataset: Any, num_clips: int) -> Features:
        """Features of the first clips, which are in random order."""
        subset = Subset(dataset, range(min(num_clips, len(dataset))))
        loader = DataLoader(subset, 256, num_workers=args.workers)
        return extract_features(encode, loader, prepare=standardise_each, device=device)

    # Training
    order = ResumableBatches(
        len(train), args.batch_size, steps=steps, seed=args.seed, first_step=first
    )
    loader = DataLoader(train, batch_sampler=order, num_workers=args.workers)
    began = time.perf_counter()
    with progress_bar(console) as bar, StopRequest() as stop:
        task = bar.add_task("", total=steps, completed=first, status="")
        for step, (clips, *_) in enumerate(loader, start=first):
            torch.manual_seed(args.seed + 1_000_003 * step)
            clips = standardise_each(clips.to(device))
            sets = masks_of(sampler, len(clips), device)
            with torch.autocast(device.type, torch.bfloat16, enabled=args.amp):
                targets, features = targets_of(clips)
                loss = compute_loss(clips, targets, sets)
            for group in optimizer.param_groups:
                group["lr"] = lr(step)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            teacher.update(encoder)
            means = features.float().mean(dim=1)
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
                status += f"  {speed:.0f} clips/s"
                bar.update(task, completed=done, status=status)
                if not console.is_terminal and (done % max(1, steps // 200 * 10) == 0):
                    console.print(f"step {done}/{steps}  {status}")
            if stop or done % args.save_every == 0 or done == steps:
                save_checkpoint(checkpoint, state_at(done))
            if stop:  # Ctrl-C, or SIGTERM of a cluster
                console.print(f"stopped after step {done} of {steps}; continue with --resume")
                raise SystemExit(stop.exit_code)
    seconds = time.perf_counter() - began

    # Results: neighbours by the mean of a clip's features, the attentive probe on all of them
    frame = size[0] // 2

    def one_frame(clips: Tensor) -> Tensor:
        patches = "b c (h p) (w q) -> b (h w) (c p q)"
        return rearrange(clips[:, :, frame], patches, p=args.patch_size, q=args.patch_size)

    def whole_clip(clips: Tensor) -> Tensor:
        tubelets = "b c (t l) (h p) (w q) -> b (t h w) (c l p q)"
        return rearrange(clips, tubelets, l=tubelet[0], p=tubelet[1], q=tubelet[2])

    encoders: dict[str, tuple[Encode, Encode]] = {
        "one frame": (one_frame, lambda clips: clips[:, :, frame].flatten(1)),
        "raw clip": (whole_clip, lambda clips: clips.flatten(1)),
        "untrained encoder": (untrained, untrained.extract_features),
        "trained teacher": (teacher.module, teacher.module.extract_features),
    }
    rows = {}
    for name, (encode, pooled) in encoders.items():
        pair = extracted(pooled, train, args.eval_clips), extracted(pooled, test, args.eval_clips)
        attentive = attentive_probe(
            encode, train, test, prepare=standardise_each, num_heads=1, epochs=args.probe_epochs,
            num_images=args.eval_clips, num_workers=args.workers, device=device,
        )  # fmt: skip
        features = pair[0].x
        rows[name] = {
            "knn": knn_accuracy(*pair, k=args.neighbours),
            "attentive": attentive,
            "rank": jepakit.effective_rank(features).item(),
            "std": features.std(dim=0).mean().item(),
        }
    table = Table("", f"kNN-{args.neighbours}", "attentive probe", "effective rank", "feature std")
    for name, row in rows.items():
        scores = [f"{row['knn']:.1%}", f"{row['attentive']:.1%}"]
        table.add_row(name, *scores, f"{row['rank']:.1f}", f"{row['std']:.2f}")
    console.print(table)
    console.print(
        "Features are frozen. Training works if the teacher is above the other rows. Features\n"
        "have collapsed if their std is below the untrained encoder's.",
        highlight=False,
        soft_wrap=True,
    )
    versions = {"jepakit": jepakit.__version__, "torch": torch.__version__}
    result = {"settings": vars(args), "versions": versions, "rows": rows, "curves": curves}
    result |= {"first_step": first, "steps": steps, "images": steps * args.batch_size}
    # Seconds of this call; those of a resumed run do not include the steps before it.
    result |= {"train_images": len(train), "seconds": seconds, "image_shape": (channels, *size)}
    (out / "result.json").write_text(json.dumps(result, indent=1))
    torch.save(teacher.module.state_dict(), out / "teacher.pth")

    # Pictures
    shown = torch.stack([test[i][0] for i in range(min(256, len(test)))])
    torch.manual_seed(args.seed)
    sets = masks_of(sampler, 1, torch.device("cpu"))
    frames = frames_of(shown / 255, tubelet[0])
    pictures = {
        f"masks{number}": plot_masks(frames[0], masks_by_time(masks), num_images=grid[0])
        for number, masks in enumerate(sets)
    }
    with torch.no_grad():
        inputs = standardise_each(shown.to(device))
        pairs = {"untrained": untrained(inputs).cpu(), "teacher": teacher(inputs).cpu()}
    # What all clips share is position, most of the variance.
    by_time = {
        name: rearrange(x - x.mean(0), "b (t n) d -> (b t) n d", t=grid[0])
        for name, x in pairs.items()
    }
    pictures["pca"] = plot_patch_pca(
        rearrange(frames, "b t c h w -> (b t) c h w"), by_time, grid[1:], num_images=2 * grid[0]
    )
    pictures["curves"] = plot_curves(curves)
    for name, figure in pictures.items():
        figure.savefig(out / f"{name}.png", dpi=150)
    arguments = f"{grid}, {args.width}, {args.depth}, {args.heads}"
    console.print(
        f"{(steps - first) * args.batch_size} clips in {seconds:.0f} s; pictures are in {out}. "
        f"The teacher, for the weights in '{out / 'teacher.pth'}':\n"
        f"TokenViT({arguments}, embed=Tubelets({tubelet}, {args.width}, {channels}), "
        f"position={args.positions!r})",
        soft_wrap=True,
        highlight=False,
    )


LOSSES = {
    "smooth_l1": jepakit.masked_smooth_l1,
    "mse": jepakit.masked_mse,
    "l1": jepakit.masked_l1,
    "cosine": jepakit.masked_cosine,
}


def standardise_each(clips: Tensor) -> Tensor:
    """Standardise each channel of each clip on its own: brightness and contrast are gone."""
    return F.instance_norm(clips.float() / 255, eps=1e-3)


def make_sampler(grid_size: tuple[int, ...], args: argparse.Namespace) -> Any:
    # V-JEPA hides blocks at all times, since videos hardly change from frame to frame. These clips
    # do: to predict a tubelet from those before and after it takes their motion, and this is what
    # a small encoder learns within minutes.
    if args.sampler == "random":
        return jepakit.RandomMask(grid_size, target_ratio=args.target_ratio)
    return vjepa_masks(
        grid_size, min_context_coverage=args.coverage, context_length=args.context_length
    )


def masks_of(sampler: Any, batch_size: int, device: torch.device) -> list[jepakit.Masks]:
    """The mask sets of a batch; most samplers return one alone."""
    masks = sampler(batch_size, device=device)
    return list(masks) if isinstance(masks, list | tuple) else [masks]


def frames_of(clips: Tensor, tubelet_frames: int) -> Tensor:
    """The first frame of every tubelet, `[b t c h w]`."""
    return rearrange(clips[:, :, ::tubelet_frames], "b c t h w -> b t c h w")


def masks_by_time(masks: jepakit.Masks) -> jepakit.Masks:
    """Masks of one clip as those of a batch of images, one for every step of time."""
    steps, *sides = masks.grid_size
    context = masks.context[0].to_mask().view(steps, -1)
    targets = rearrange(masks.targets[0].to_mask(), "m (t n) -> t m n", t=steps)
    return jepakit.Masks(
        jepakit.TokenSet.from_mask(context, sides), jepakit.TokenSet.from_mask(targets, sides)
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
            kind = {"type": float, "nargs": 2}
        if isinstance(default, bool):
            options["action"] = "store_true"
        text = help if default in (None, False) else f"{help} (default: {default})"
        parser.add_argument(name, default=default, help=text, **{**kind, **options})

    add("--data", "motions", "motions, an .npz file or a folder of videos")
    add("--num-frames", None, "frames of a clip, of videos and files", type=int)
    add("--frame-step", None, "take every n-th frame of a video", type=int)
    add("--image-size", None, "resize to this many pixels", type=int)
    add("--tubelet-frames", 2, "frames of a tubelet")
    add("--patch-size", 8, "side of a tubelet in pixels")
    add("--width", 64, "width of the encoder")
    add("--depth", 4, "number of encoder blocks")
    add("--heads", 2, "attention heads of encoder and predictor")
    add("--positions", "sincos", "position embeddings", choices=("sincos", "rope", "learned"))
    add("--predictor-width", 64, "width of the predictor")
    add("--predictor-depth", 2, "number of predictor blocks")
    add("--target-layers", None, "blocks whose features are targets, from 0, instead of the last",
        type=int, nargs="+")  # fmt: skip
    add("--sampler", "random", "tubelets hidden at random, or V-JEPA's short- and long-range masks",
        choices=("random", "vjepa"))  # fmt: skip
    add("--target-ratio", 0.75, "fraction of the tubelets that random masks hide")
    add("--coverage", (0.15, 0.05), "smallest contexts of V-JEPA's two sets, fractions of the grid",
        metavar=("SHORT", "LONG"))  # fmt: skip
    add("--context-length", "fixed", "cut contexts to the least, or to the shortest, or pad them",
        choices=("fixed", "trim", "pad"))  # fmt: skip
    add("--loss", "mse", "loss", choices=LOSSES)
    add("--target-norm", "whiten", "normalisation of the targets, of each layer on its own",
        choices=(*CENTRED, "layer", "l2", "none"))  # fmt: skip
    add("--momentum", (0.98, 1.0), "teacher momentum at the first and the last step",
        metavar=("FIRST", "LAST"))  # fmt: skip
    add("--epochs", 8, "passes over the data")
    add("--steps", None, "number of steps, instead of --epochs", type=int)
    add("--batch-size", 64, "clips per step")
    add("--lr", 2e-3, "peak learning rate")
    add("--weight-decay", 0.05, "weight decay of matrices")
    add("--eval-clips", 2000, "largest number of clips of each split to evaluate on")
    add("--probe-epochs", 20, "epochs of the attentive probe")
    add("--neighbours", 20, "number of neighbours in kNN")
    add("--knn-every", 250, "steps between accuracies of nearest neighbours during training")
    add("--workers", 0, "number of loader processes")
    add("--device", "cuda" if torch.cuda.is_available() else "cpu", "device to train on")
    add("--amp", False, "bfloat16 autocast")
    add("--seed", 0, "random seed")
    add("--save-every", 100, "steps between checkpoints")
    add("--resume", False, "continue from the checkpoint in --out, if there is one")
    add("--out", "vjepa-out", "folder for the checkpoint, the teacher and the pictures")
    args = parser.parse_args()
    if args.steps is not None and args.steps < 1:
        parser.error(f"--steps {args.steps}: must be at least 1")
    layers = args.target_layers or []
    if len(set(layers)) < len(layers) or any(not 0 <= layer < args.depth for layer in layers):
        parser.error(f"--target-layers {layers}: must be different blocks of 0 to {args.depth - 1}")
    args.momentum, args.coverage = tuple(args.momentum), tuple(args.coverage)
    return args


if __name__ == "__main__":
    main()
