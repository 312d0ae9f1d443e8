"""A JEPA over sequences of grids of objects, in one file to copy and change.

A puzzle shows pairs of grids, input and output of the same rule, and asks for the output of one
more input. Objects of a grid (regions of one colour) are encoded as a set, the grids shown are
pooled to one vector by attention that keeps their order, and from it and the last input the vector
of the next grid is predicted, as a moving average of the model computes it. By default puzzles are
generated, and training takes a few minutes on a CPU. With the puzzles of ARC in one file:

    python examples/arc_jepa.py
    python examples/arc_jepa.py --codes 0 --pool mean --out averages
    python examples/arc_jepa.py --data arc_agi1.npz --seed 1 --out arc-1

The file has the arrays `x_S` (grids [g, 30, 30] of colours 0 to 9, padded), `hw_S` (their sizes),
`y_S` (number of the puzzle), `role_S` (0 shown, 1 asked), `pair_S` and `io_S` (0 input, 1 output),
with S = train or test. Every epoch prints the loss on puzzles that training does not see, the same
with the grids shown in reverse, ranks, codes in use, and how often the prediction finds the right
next grid among 100. All random numbers of a step depend on the seed and the step alone, so an
interrupted run that is started again with `--resume` ends with the weights of one that was not.
"""

import argparse
import copy
import functools
import json
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.colors import ListedColormap
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from scipy import ndimage
from torch import Tensor, nn

import jepakit
from jepakit.checkpoints import StopRequest, check_can_save, load_checkpoint, save_checkpoint
from jepakit.data import ResumableBatches
from jepakit.diagnostics import TargetRetrieval, effective_rank, target_retrieval
from jepakit.losses import LearnableTemperature, LossSum, info_nce, relational_loss
from jepakit.nn import Quantized, SetEncoder, TemporalPool, VectorQuantizer
from jepakit.optim import param_groups
from jepakit.plots import plot_curves
from jepakit.tokens import TokenSet

COLOURS, LARGEST, CROP = 10, 30, 5  # colours, side of the largest grid, side of a shape's crop
# An object: colour, top, left, height, width, area, height and width of its grid, crop of its shape
OBJECT = 8 + CROP * CROP
FEATURES = COLOURS + 12 + CROP * CROP
# Those that ARC is shown in; the last one is around a grid.
PALETTE = (
    *("#000000", "#0074D9", "#FF4136", "#2ECC40", "#FFDC00", "#AAAAAA"),
    *("#F012BE", "#FF851B", "#7FDBFF", "#870C25", "#FFFFFF"),
)
COLUMNS = {
    "loss": "validation loss",
    "loss, reversed": "reversed",
    "retrieval": "right answers",
    "retrieval, reversed": "reversed",
    "context rank": "context rank",
    "target rank": "target rank",
    "usage": "codes used",
    "temperature": "temperature",
    "contrastive": "contrastive",
    "relational": "relational",
}
PERCENT = {"retrieval", "retrieval, reversed", "usage"}


class Puzzles(NamedTuple):
    """Puzzles as sets of objects.

    Args:
        objects, valid: Objects of every grid, `[grids, n, OBJECT]`, and which of them exist.
        steps: The grids of each puzzle in order, input, output, input ..., those that are shown
            first: `[puzzles, t]`, -1 after the last.
        num_shown: Number of steps that are shown, `[puzzles]`; the next one is asked.
        same: A number for each grid, equal for equal grids.
        grids: The grids themselves, for pictures; 10 around them.
    """

    objects: Tensor
    valid: Tensor
    steps: Tensor
    num_shown: Tensor
    same: Tensor
    grids: Tensor


class Batch(NamedTuple):
    """Grids of some puzzles, one after another, and where each of them belongs.

    Args:
        objects, valid, same: As in `Puzzles`, of these grids alone.
        task, step: Puzzle of the batch and step of each grid, `[g]`.
        present: True where a puzzle has a step, `[b t]`.
    """

    objects: Tensor
    valid: Tensor
    same: Tensor
    task: Tensor
    step: Tensor
    present: Tensor


class GridSequences(nn.Module):
    """Set encoder of the grids and pool over the steps: all that the teacher averages."""

    def __init__(self, dim: int, depth: int, max_steps: int, pool: str) -> None:
        super().__init__()
        self.encoder = SetEncoder(FEATURES, dim, depth)
        self.norm = nn.LayerNorm(dim)
        self.pool = TemporalPool(dim, max_steps) if pool == "attention" else MeanPool()

    def forward(self, objects: Tensor, valid: Tensor) -> Tensor:
        """Vectors of grids `[g n OBJECT]`, each a sequence of one step."""
        return self.pool(self.encode(objects, valid).unsqueeze(1))

    def encode(self, objects: Tensor, valid: Tensor) -> Tensor:
        return self.norm(self.encoder(object_features(objects), valid))


class MeanPool(nn.Module):
    """Mean of the valid steps, which knows no order."""

    def forward(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        if valid is None:
            return features.mean(dim=-2)
        weights = valid.unsqueeze(-1).to(features.dtype)
        return (weights * features).sum(dim=-2) / weights.sum(dim=-2).clamp(min=1)


def main() -> None:
    args = parse_args()
    console, out, device = Console(), Path(args.out), torch.device(args.device)
    out.mkdir(parents=True, exist_ok=True)
    train, test = load_puzzles(args.data, args.puzzles, args.max_objects, device)
    if len(train.steps) < args.batch_size:
        raise SystemExit(f"--batch-size {args.batch_size}: there are {len(train.steps)} puzzles")
    torch.manual_seed(args.seed)
    per_epoch = len(train.steps) // args.batch_size
    steps = args.epochs * per_epoch if args.steps is None else args.steps

    # Models, losses, optimiser
    dim, max_steps = args.width, max(train.steps.shape[1], test.steps.shape[1])
    parts_of_student: dict[str, nn.Module] = {
        "model": GridSequences(dim, args.depth, max_steps, args.pool),
        "predictor": nn.Sequential(nn.Linear(2 * dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)),
        "temperature": LearnableTemperature(*args.temperature),
    }
    weights = {"contrastive": 1.0, "relational": args.relational_weight}
    if args.codes:
        parts_of_student["quantizer"] = VectorQuantizer(
            args.codes,
            dim,
            momentum=args.codebook_momentum,
            commitment_weight=args.commitment_weight,
        )
        weights["codebook"] = 1.0  # the commitment has its own weight in the quantizer
    student = nn.ModuleDict(parts_of_student).to(device)
    nn.init.zeros_(student["predictor"][-1].weight)  # at first, the next grid is like the input
    teacher = jepakit.EMATeacher(student["model"], jepakit.linear(*args.momentum, steps=steps))
    untrained = copy.deepcopy(student), copy.deepcopy(teacher)
    loss_sum = LossSum(weights)
    optimizer = torch.optim.AdamW(param_groups(student, args.weight_decay), betas=(0.9, 0.95))
    lr = jepakit.warmup_cosine(args.lr, args.lr / 100, warmup_steps=steps // 10, steps=steps)

    def compute_loss(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        task, asked, shown = every_pair(batch)
        inputs, steps, quantized = encode_steps(student, batch)
        context = student["model"].pool(steps[task], shown)
        pred = predict(student, context, inputs[task, asked])
        is_output = batch.step % 2 == 1  # in the order of the questions
        target = teacher(batch.objects[is_output], batch.valid[is_output])
        # An output that a puzzle asks for twice is no negative of itself.
        number = batch.same[is_output]
        equal = (task[:, None] == task) & (number[:, None] == number)
        terms = {
            "contrastive": info_nce(
                pred, target, temperature=student["temperature"](), false_negatives=equal
            ),
            "relational": relational_loss(pred, target),
        }
        if quantized is not None:
            terms["codebook"] = quantized.loss
        return loss_sum(terms)

    # State: a new run, or the last checkpoint of an interrupted one
    parts = {"student": student, "teacher": teacher, "optimizer": optimizer}
    curves: dict[str, list[tuple[int, float]]] = {}
    since: dict[str, list[float]] = {}  # terms of the loss since the last evaluation
    first, checkpoint = 0, out / "checkpoint.pt"
    if state := resumed_state(checkpoint, [*parts, "step", "curves", "since"], args):
        first, curves, since = state["step"], state["curves"], state["since"]
        console.print(f"resuming at step {first} of {steps}")
        for name, part in parts.items():
            part.load_state_dict(state[name])
    else:
        console.print(f"{len(train.steps)} puzzles, {len(train.grids)} grids, {steps} steps")

    def state_at(step: int) -> dict[str, Any]:
        state: dict[str, Any] = {name: part.state_dict() for name, part in parts.items()}
        return state | {"step": step, "curves": curves, "since": since, "args": vars(args)}

    check_can_save(checkpoint, state_at(first))  # a full disk is found before training

    # Training
    order = ResumableBatches(
        len(train.steps), args.batch_size, steps=steps, seed=args.seed, first_step=first
    )
    began = time.perf_counter()
    with progress_bar(console) as bar, StopRequest() as stop:
        progress = bar.add_task("", total=steps, completed=first, status="")
        for step, tasks in enumerate(order, start=first):
            torch.manual_seed(args.seed + 1_000_003 * step)
            student.train()
            batch = batch_of(train, torch.tensor(tasks, device=device))
            loss, terms = compute_loss(augmented(batch))
            for group in optimizer.param_groups:
                group["lr"] = lr(step)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            teacher.update(student["model"])

            done = step + 1
            for name, term in terms.items():
                since.setdefault(name, []).append(term.item())
            bar.update(progress, completed=done, status=f"loss {loss.item():.3g}")
            if done % per_epoch == 0 or done == steps:
                means = {name: sum(values) / len(values) for name, values in since.items()}
                measured = means | evaluate(student, teacher, test, args.candidates)
                for name, value in measured.items():
                    curves.setdefault(name, []).append((done, value))
                since = {}
                status = "  ".join(
                    f"{COLUMNS[name]} {shown_as(name, measured[name])}"
                    for name in COLUMNS
                    if name in measured
                )
                console.print(
                    f"epoch {done / per_epoch:.4g}: {status}", highlight=False, soft_wrap=True
                )
            if stop or done % args.save_every == 0 or done == steps:
                save_checkpoint(checkpoint, state_at(done))
            if stop:  # Ctrl-C, or SIGTERM of a cluster
                console.print(f"stopped after step {done} of {steps}; continue with --resume")
                raise SystemExit(stop.exit_code)
    seconds = time.perf_counter() - began

    # Results
    rows = {}
    for name, pair in {"untrained": untrained, "trained": (student, teacher)}.items():
        rows[name] = evaluate(*pair, test, args.candidates)
    rows["copy of the input"] = copied(teacher, test, args.candidates)
    table = Table("", *rows)
    for name, title in COLUMNS.items():
        if any(name in row for row in rows.values()):
            table.add_row(title, *(shown_as(name, row.get(name)) for row in rows.values()))
    console.print(table)
    versions = {"jepakit": jepakit.__version__, "torch": torch.__version__}
    result = {"settings": vars(args), "versions": versions, "rows": rows, "curves": curves}
    result |= {"first_step": first, "steps": steps, "steps_per_epoch": per_epoch}
    # Seconds of this call; those of a resumed run do not include the steps before it.
    result |= {"puzzles": len(train.steps), "test_puzzles": len(test.steps), "seconds": seconds}
    (out / "result.json").write_text(json.dumps(result, indent=1))
    torch.save(teacher.module.state_dict(), out / "teacher.pth")
    plot_curves(curves).savefig(out / "curves.png", dpi=100)
    plot_answers(student, teacher, test, args.candidates).savefig(out / "answers.png", dpi=120)
    console.print(
        f"{steps - first} steps in {seconds:.0f} s; pictures are in {out}.\n"
        f"An answer is right if, of {args.candidates} grids, the right one is closest to the\n"
        "prediction. Order matters if the loss is higher with the steps shown in reverse.",
        highlight=False,
        soft_wrap=True,
    )


# The model on a batch


def batch_of(puzzles: Puzzles, tasks: Tensor) -> Batch:
    """The grids of the puzzles with these numbers."""
    steps = puzzles.steps[tasks]
    steps = steps[:, : int((steps >= 0).sum(dim=1).max())]
    task, step = (steps >= 0).nonzero(as_tuple=True)
    grid = steps[task, step]
    valid = puzzles.valid[grid]
    most = int(valid.sum(dim=1).max())  # valid objects come first
    return Batch(
        puzzles.objects[grid, :most], valid[:, :most], puzzles.same[grid], task, step, steps >= 0
    )


def encode_steps(student: nn.ModuleDict, batch: Batch) -> tuple[Tensor, Tensor, Quantized | None]:
    """Vectors of the steps `[b t d]` as inputs, those that are pooled, and the codebook's result.

    Without a codebook the first two are the same.
    """
    vectors, quantized = student["model"].encode(batch.objects, batch.valid), None
    empty = vectors.new_zeros(*batch.present.shape, vectors.shape[1])
    place = batch.task, batch.step
    inputs = pooled = empty.index_put(place, vectors)
    if "quantizer" in student:
        quantized = student["quantizer"](vectors)
        pooled = empty.index_put(place, quantized.quantized)
    return inputs, pooled, quantized


def predict(student: nn.ModuleDict, context: Tensor, inputs: Tensor) -> Tensor:
    """Vectors of the next grids: those of the inputs, changed as the contexts say."""
    inputs = student["model"].pool(inputs.unsqueeze(1))  # single grids, as the teacher encodes them
    return inputs + student["predictor"](torch.cat([context, inputs], dim=1))


def backwards(steps: Tensor, shown: Tensor) -> Tensor:
    """The steps that are shown, in reverse; they must be the first of their sequence."""
    place = shown.sum(dim=1, keepdim=True) - 1 - torch.arange(shown.shape[1], device=shown.device)
    return steps.gather(1, place.clamp(min=0).unsqueeze(-1).expand_as(steps))


@torch.no_grad()
def evaluate(
    student: nn.ModuleDict, teacher: nn.Module, puzzles: Puzzles, candidates: int
) -> dict[str, float]:
    """Measures on the asked pair of each puzzle, `candidates` puzzles at a time.

    The loss is the contrastive one; a prediction is right if no other of the candidates is closer
    to it, after the mean of all candidates was subtracted.
    """
    student.eval()
    sums: dict[str, list[float]] = {}
    contexts, targets, codes = [], [], []
    for tasks in groups(puzzles, candidates):
        batch, task, asked, shown = asked_pairs(puzzles, tasks)
        place = at_steps(batch, asked + 1)
        target = teacher(batch.objects[place], batch.valid[place])
        inputs, steps, quantized = encode_steps(student, batch)
        for name, shown_steps in (("", steps), (", reversed", backwards(steps, shown))):
            context = student["model"].pool(shown_steps, shown)
            pred = predict(student, context, inputs[task, asked])
            loss = info_nce(pred, target, temperature=student["temperature"]())
            sums.setdefault(f"loss{name}", []).append(loss.item())
            sums.setdefault(f"retrieval{name}", []).append(retrieved(pred, target).accuracy.item())
            if not name:
                contexts.append(context)
        targets.append(target)
        if quantized is not None:
            codes.append(quantized.indices)
    measured = {name: sum(values) / len(values) for name, values in sums.items()}
    measured["context rank"] = effective_rank(torch.cat(contexts)).item()
    measured["target rank"] = effective_rank(torch.cat(targets)).item()
    measured["temperature"] = student["temperature"]().item()
    if codes:
        measured["usage"] = len(torch.cat(codes).unique()) / student["quantizer"].num_codes
    return measured


def every_pair(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """One question for each pair of each puzzle: row, step of the input, steps shown.

    All other pairs of the puzzle are shown, those before it and those after it.
    """
    is_output = batch.step % 2 == 1
    task, asked = batch.task[is_output], batch.step[is_output] - 1
    pair = torch.arange(batch.present.shape[1], device=task.device) // 2
    return task, asked, batch.present[task] & (pair != asked.unsqueeze(1) // 2)


def asked_pairs(puzzles: Puzzles, tasks: Tensor) -> tuple[Batch, Tensor, Tensor, Tensor]:
    """The batch, and of one question for each puzzle: row, step of the input, steps shown."""
    batch = batch_of(puzzles, tasks)
    asked = puzzles.num_shown[tasks]
    shown = torch.arange(batch.present.shape[1], device=asked.device) < asked.unsqueeze(1)
    return batch, torch.arange(len(tasks), device=asked.device), asked, shown


def at_steps(batch: Batch, steps: Tensor) -> Tensor:
    """Places in the batch of the grid at one step of each puzzle."""
    return (batch.step == steps[batch.task]).nonzero().squeeze(1)


def groups(puzzles: Puzzles, size: int) -> list[Tensor]:
    """Numbers of the puzzles in groups of `size`; the rest is left out."""
    numbers = torch.arange(len(puzzles.steps), device=puzzles.steps.device)
    return [group for group in numbers.split(size) if len(group) == min(size, len(numbers))]


def retrieved(pred: Tensor, target: Tensor, k: int = 1) -> TargetRetrieval:
    """Search of each prediction among all targets, by the cosine around their mean."""
    everywhere = TokenSet.full((1,), (len(pred), 1), device=pred.device)
    return target_retrieval(pred[:, None, None], target[:, None], everywhere, k=k)


@torch.no_grad()
def copied(teacher: nn.Module, puzzles: Puzzles, candidates: int) -> dict[str, float]:
    """Retrieval by the vector of the last input, as if the next grid were equal to it."""
    hits = []
    for tasks in groups(puzzles, candidates):
        batch, _, asked, _ = asked_pairs(puzzles, tasks)
        vectors = teacher(batch.objects, batch.valid)
        pred, target = (vectors[at_steps(batch, step)] for step in (asked, asked + 1))
        hits.append(retrieved(pred, target).accuracy.item())
    return {"retrieval": sum(hits) / len(hits)}


# Grids as sets of objects


def objects_of(grid: np.ndarray, max_objects: int) -> np.ndarray:
    """The canvas of a grid and its largest regions of one colour, `[n, OBJECT]`."""
    regions = []
    for colour in np.unique(grid[grid > 0]):
        labels, _ = ndimage.label(grid == colour, structure=np.ones((3, 3)))
        for number, box in enumerate(ndimage.find_objects(labels), start=1):
            regions.append((colour, box, labels[box] == number))
    regions.sort(key=lambda region: -region[2].sum())
    canvas = (0, tuple(slice(0, side) for side in grid.shape), grid == 0)
    rows = []
    for colour, (down, right), shape in [canvas, *regions[: max_objects - 1]]:
        box = (down.start, right.start, *shape.shape)
        crop = averages(shape.shape[0]) @ shape @ averages(shape.shape[1]).T
        rows.append([colour, *box, shape.sum(), *grid.shape, *crop.ravel()])
    return np.array(rows, dtype=np.float32)


@functools.cache
def averages(side: int) -> np.ndarray:
    """Matrix `[CROP, side]` that scales a side; the same when both are flipped."""
    return F.adaptive_avg_pool1d(torch.eye(side), CROP).T.numpy()


def augmented(batch: Batch) -> Batch:
    """Colours but the canvas's permuted, and grids flipped and transposed, puzzle by puzzle."""
    objects, task = batch.objects, batch.task
    num_tasks, device = len(batch.present), objects.device
    # One draw for each puzzle, the same on every device.
    colours = 1 + torch.rand(num_tasks, COLOURS - 1).argsort(dim=1)
    colours = F.pad(colours, (1, 0)).to(device)
    flip = (torch.rand(3, num_tasks) < 0.5).to(device)[:, task].view(3, -1, 1, 1)
    (colour, top, left, height, width, area, rows, columns), crop = split_objects(objects)
    colour = colours[task.unsqueeze(1), colour.squeeze(2).long()].unsqueeze(2).to(objects)
    top = torch.where(flip[0], rows - top - height, top)
    left = torch.where(flip[1], columns - left - width, left)
    crop = torch.where(flip[0].unsqueeze(-1), crop.flip(2), crop)
    crop = torch.where(flip[1].unsqueeze(-1), crop.flip(3), crop)
    plain = [colour, top, left, height, width, area, rows, columns, crop.flatten(2)]
    turned = [colour, left, top, width, height, area, columns, rows, crop.mT.flatten(2)]
    objects = torch.where(flip[2], torch.cat(turned, dim=2), torch.cat(plain, dim=2))
    return batch._replace(objects=objects)


def object_features(objects: Tensor) -> Tensor:
    """Vectors of the objects, `[g n FEATURES]`: colour, place, size and shape."""
    (colour, top, left, height, width, area, rows, columns), crop = split_objects(objects)
    sides = [top, left, rows - top - height, columns - left - width, height, width, rows, columns]
    features = [
        F.one_hot(colour.squeeze(2).long(), COLOURS).to(objects),
        *(side / LARGEST for side in sides),
        (2 * top + height) / rows.clamp(min=1) - 1,  # centre, from -1 to 1
        (2 * left + width) / columns.clamp(min=1) - 1,
        (1 + area).log() / 7,
        area / (height * width).clamp(min=1),
        crop.flatten(2),
    ]
    return torch.cat(features, dim=2)


def split_objects(objects: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """The eight numbers of each object, `[g n 1]` each, and the crops `[g n CROP CROP]`."""
    return objects[:, :, :8].split(1, dim=2), objects[:, :, 8:].unflatten(2, (CROP, CROP))


# Puzzles


def load_puzzles(
    data: str, num_puzzles: int, max_objects: int, device: torch.device
) -> tuple[Puzzles, Puzzles]:
    """Puzzles to train on and to test on, of a file or generated."""
    if data == "puzzles":
        parts = [generated_puzzles(num_puzzles, seed) for seed in (0, 1)]
    else:
        with np.load(data) as file:
            names = ("x", "hw", "y", "role", "pair", "io")
            missing = [
                f"{n}_{s}" for s in ("train", "test") for n in names if f"{n}_{s}" not in file
            ]
            if missing:
                raise SystemExit(f"--data {data}: has no {', '.join(missing)}")
            parts = [{n: file[f"{n}_{s}"] for n in names} for s in ("train", "test")]
    train, test = (as_objects(arrays, max_objects, device) for arrays in parts)
    return train, test


def as_objects(arrays: Mapping[str, np.ndarray], max_objects: int, device: torch.device) -> Puzzles:
    sets = [
        objects_of(grid[:height, :width], max_objects)
        for grid, (height, width) in zip(arrays["x"], arrays["hw"].tolist(), strict=True)
    ]
    objects = torch.zeros(len(sets), max_objects, OBJECT)
    valid = torch.zeros(len(sets), max_objects, dtype=torch.bool)
    for number, rows in enumerate(sets):
        objects[number, : len(rows)] = torch.from_numpy(rows)
        valid[number, : len(rows)] = True
    # Puzzle by puzzle; what is shown before what is asked, and the input before the output.
    keys = [arrays[name].astype(int) for name in ("io", "pair", "role", "y")]
    order, puzzle = np.lexsort(keys), np.sort(keys[-1])
    counts = np.unique(puzzle, return_counts=True)[1]
    steps = np.full((len(counts), counts.max()), -1)
    steps[np.arange(counts.max()) < counts[:, None]] = order
    num_shown = [int((arrays["role"][row[row >= 0]] == 0).sum()) for row in steps]
    same = np.unique(arrays["x"].reshape(len(sets), -1), axis=0, return_inverse=True)[1]
    tensors = steps, num_shown, same.ravel(), arrays["x"]
    return Puzzles(
        objects.to(device), valid.to(device), *(torch.as_tensor(x, device=device) for x in tensors)
    )


def generated_puzzles(num_puzzles: int, seed: int, num_pairs: int = 4) -> dict[str, np.ndarray]:
    """Puzzles whose rule moves all objects, gives them one colour and may enlarge them."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, list[Any]] = {name: [] for name in ("x", "hw", "y", "role", "pair", "io")}
    for puzzle in range(num_puzzles):
        side, move = rng.integers(11, 16), rng.integers(-3, 4, 2)
        new_colour, enlarge = rng.integers(1, COLOURS), rng.random() < 0.5
        for pair in range(num_pairs):  # the last one is asked
            before, after = np.zeros((2, side, side), dtype=np.uint8)
            for _ in range(rng.integers(1, 4)):
                shape = np.zeros((side, side), dtype=bool)
                top, left = rng.integers(4, side - 5, 2)  # stays inside
                shape[top : top + 2, left : left + 2] = rng.random((2, 2)) < 0.8
                before[shape] = rng.integers(1, COLOURS)
                if enlarge:
                    shape = ndimage.binary_dilation(shape)
                after[np.roll(shape, move, (0, 1))] = new_colour
            for io, grid in enumerate((before, after)):
                padded = np.full((LARGEST, LARGEST), COLOURS, dtype=np.uint8)
                padded[:side, :side] = grid
                role = int(pair == num_pairs - 1)
                values = (padded, (side, side), puzzle, role, pair, io)
                for name, value in zip(arrays, values, strict=True):
                    arrays[name].append(value)
    return {name: np.array(values) for name, values in arrays.items()}


# Output, checkpoints, options


@torch.no_grad()
def plot_answers(
    student: nn.ModuleDict, teacher: nn.Module, puzzles: Puzzles, candidates: int
) -> plt.Figure:
    """Questions, the right next grid, and the three that are closest to the prediction."""
    tasks = groups(puzzles, candidates)[0]
    batch, task, asked, shown = asked_pairs(puzzles, tasks)
    place = at_steps(batch, asked + 1)
    target = teacher(batch.objects[place], batch.valid[place])
    inputs, steps, _ = encode_steps(student.eval(), batch)
    pred = predict(student, student["model"].pool(steps, shown), inputs[task, asked])
    nearest = retrieved(pred, target, k=3).nearest[:, 0].cpu()
    numbers, asked = puzzles.steps[tasks].cpu(), asked.cpu()
    right = numbers.gather(1, asked.unsqueeze(1) + 1)
    titles = ["input shown", "output shown", "input asked", "right", "1st", "2nd", "3rd"]
    chosen = range(0, len(tasks), max(1, len(tasks) // 6))
    figure, axes = plt.subplots(
        len(chosen), 7, figsize=(9, 1.4 * len(chosen)), squeeze=False, layout="constrained"
    )
    for row, number in zip(axes, chosen, strict=True):
        ask = int(asked[number])
        shown_grids = [*numbers[number, ask - 2 : ask + 2], *right[nearest[number], 0]]
        for column, (ax, grid) in enumerate(zip(row, shown_grids, strict=True)):
            pixels = puzzles.grids[grid].cpu()
            inside = pixels < COLOURS
            pixels = pixels[inside.any(dim=1)][:, inside.any(dim=0)]
            ax.imshow(pixels, cmap=ListedColormap(PALETTE), vmin=0, vmax=COLOURS)
            ax.set(xticks=[], yticks=[])
            if column > 3 and grid == right[number, 0]:
                ax.spines[:].set(color="#0072B2", linewidth=3)
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=8)
    return figure


def shown_as(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1%}" if name in PERCENT else f"{value:.3g}"


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
    may_differ = {"resume", "out", "device", "save_every"}
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

    add("--data", "puzzles", "generated puzzles, or an .npz file of ARC's")
    add("--puzzles", 400, "number of generated puzzles to train on, and to test on")
    add("--max-objects", 12, "objects of a grid, the canvas included; smaller ones are left out")
    add("--width", 64, "width of all vectors")
    add("--depth", 1, "blocks of the set encoder")
    add("--pool", "attention", "pool over the grids shown; the mean knows no order",
        choices=("attention", "mean"))  # fmt: skip
    add("--codes", 128, "size of the codebook for the grids shown; 0 for none")
    add("--codebook-momentum", 0.95, "fraction of the old codes that is kept")
    add("--commitment-weight", 0.15, "weight of the commitment to the codes")
    add("--relational-weight", 0.02, "weight of the relational loss beside the contrastive one")
    add("--temperature", (0.05, 0.2), "bounds of the learned temperature")
    add("--momentum", (0.98, 1.0), "teacher momentum at the first and the last step")
    add("--candidates", 100, "grids among which the next one is searched")
    add("--epochs", 30, "passes over the puzzles")
    add("--steps", None, "number of steps, instead of --epochs", type=int)
    add("--batch-size", 32, "puzzles per step; every pair of a puzzle is asked once")
    add("--lr", 2e-3, "peak learning rate")
    add("--weight-decay", 0.05, "weight decay of matrices")
    add("--device", "cuda" if torch.cuda.is_available() else "cpu", "device to train on")
    add("--seed", 0, "random seed")
    add("--save-every", 100, "steps between checkpoints")
    add("--resume", False, "continue from the checkpoint in --out, if there is one")
    add("--out", "arc-out", "folder for the checkpoint, the teacher and the pictures")
    args = parser.parse_args()
    if args.steps is not None and args.steps < 1:
        parser.error(f"--steps {args.steps}: must be at least 1")
    args.momentum, args.temperature = tuple(args.momentum), tuple(args.temperature)
    return args


if __name__ == "__main__":
    main()
