"""Speed of mask samplers: `MultiBlockMask` in all modes, loops over samples, other libraries.

    python benchmarks/masks.py --write benchmarks/results/masks.json

Images and clips; one thread, whose own time is measured, so that other processes count little.
Each table is measured in interleaved rounds. It compares with
- a loop with the same options: for each sample it draws sizes and positions with Python's
  `random`, fills torch masks, and lists the positions that are left. It guarantees no minimum
  context, which saves work;
- the published collators of I-JEPA and V-JEPA, written as loops in `published.py`;
- the samplers of lightly and stable-pretraining, where installed.
"""

import argparse
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from published import clip_masks as published_clip_masks
from published import image_masks as published_image_masks
from runs import save
from timing import in_turns

from jepakit import MultiBlockMask

TARGET_SCALE = (0.15, 0.2)
DISJOINT_SCALE = (0.08, 0.1)  # four disjoint blocks at the paper's scale do not always fit
GRID = (14, 14)
LENGTHS = ("fixed", "trim", "pad")
COVERAGE = 0.4  # high enough for the guarantee to restrict blocks, so that its cost is measured


class Mode(NamedTuple):
    """Arguments of `MultiBlockMask`."""

    target_size_per: str
    context_length: str | int
    overlap: bool


def naive_masks(
    grid_size: tuple[int, int], batch_size: int, mode: Mode
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks sample by sample: indices of the contexts, padded or trimmed, and of the targets."""
    target_size_per, context_length, overlap = mode
    target_scale = TARGET_SCALE if overlap else DISJOINT_SCALE
    height, width = grid_size

    def draw_size(scale: tuple[float, float], aspect: tuple[float, float]) -> tuple[int, int]:
        area = random.uniform(*scale) * height * width
        ratio = math.exp(random.uniform(math.log(aspect[0]), math.log(aspect[1])))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        return min(max(1, h), height), min(max(1, w), width)

    def draw_block(h: int, w: int) -> tuple[slice, slice]:
        top, left = random.randint(0, height - h), random.randint(0, width - w)
        return slice(top, top + h), slice(left, left + w)

    size = draw_size(target_scale, (0.75, 1.5))
    contexts, targets = [], []
    for _ in range(batch_size):
        if target_size_per == "sample":
            size = draw_size(target_scale, (0.75, 1.5))
        context = torch.zeros(height, width, dtype=torch.bool)
        context[draw_block(*draw_size((0.85, 1.0), (1.0, 1.0)))] = True
        taken = torch.zeros(height, width, dtype=torch.bool)
        blocks = []
        for _ in range(4):
            block = draw_block(*size)
            for _ in range(0 if overlap else 20):  # then it gives up, as published code does
                if not taken[block].any():
                    break
                block = draw_block(*size)
            taken[block] = True
            target = torch.zeros(height, width, dtype=torch.bool)
            target[block] = True
            blocks.append(target.flatten().nonzero().squeeze(1))
        contexts.append((context & ~taken).flatten().nonzero().squeeze(1))
        targets.extend(blocks)
    if context_length != "pad":
        shortest = min(len(context) for context in contexts)
        fixed = math.ceil(COVERAGE * height * width) if context_length == "fixed" else shortest
        length = min(shortest, context_length if isinstance(context_length, int) else fixed)
        contexts = [
            context[torch.randperm(len(context))[:length].sort().values] for context in contexts
        ]
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(contexts, batch_first=True), pad(targets, batch_first=True)


def other_libraries(grid: tuple[int, int], batch: int) -> dict[str, Callable[[], object]]:
    """Calls that sample one batch of I-JEPA masks, one for each library that is installed."""
    calls: dict[str, Callable[[], object]] = {}
    paper = {"aspect_ratio": (0.75, 1.5), "min_keep": 10}
    pixels = (16 * grid[0], 16 * grid[1])
    try:
        from lightly.data.ijepa_collate import IJEPAMaskCollator
    except ImportError:
        print("lightly: not installed")
    else:
        collator = IJEPAMaskCollator(
            pixels, 16, enc_mask_scale=(0.85, 1.0), pred_mask_scale=TARGET_SCALE, npred=4, **paper
        )
        samples = [0] * batch
        calls["lightly, IJEPAMaskCollator"] = lambda: collator(samples)
    try:
        from stable_pretraining.data.transforms import ContextTargetsMultiBlockMask
    except ImportError:
        print("stable-pretraining: not installed")
    else:
        transform, image = ContextTargetsMultiBlockMask(16), torch.zeros(3, *pixels)
        calls["stable-pretraining, ContextTargetsMultiBlockMask"] = lambda: [
            transform({"image": image}) for _ in range(batch)
        ]
    return calls


def modes() -> Iterator[tuple[Mode, MultiBlockMask]]:
    """Every mode with its sampler."""
    for target_size_per, length, overlap in product(
        ("batch", "sample"), (*LENGTHS, 40), (True, False)
    ):
        scale = TARGET_SCALE if overlap else DISJOINT_SCALE
        sampler = MultiBlockMask(
            GRID,
            target_scale=scale,
            min_context_coverage=COVERAGE,
            allow_target_overlap=overlap,
            target_size_per=target_size_per,
            context_length=length,
        )
        yield Mode(target_size_per, length, overlap), sampler


def papers(batch: int) -> dict[str, Callable[[], object]]:
    """Calls that draw a batch of I-JEPA's masks with the settings of the paper."""
    samplers = {
        f"MultiBlockMask, {length}": partial(MultiBlockMask(GRID, context_length=length), batch)
        for length in LENGTHS
    }
    published = {"published collator": partial(published_image_masks, GRID, batch)}
    return samplers | published | other_libraries(GRID, batch)


# V-JEPA's two sets: number of blocks, and the share of a frame that each covers.
CLIP_SETS = {"short range, 8 x 15 %": (8, 0.15), "long range, 2 x 70 %": (2, 0.7)}


def clips(count: int, scale: float, batch: int) -> dict[str, Callable[[], object]]:
    """Calls that draw a batch of one of V-JEPA's sets."""
    grid = (8, *GRID)
    blocks: dict[str, Any] = {"num_targets": count, "target_scale": (scale, scale)}
    blocks |= {"context_scale": (1.0, 1.0), "min_context_coverage": 0.05}
    calls: dict[str, Callable[[], object]] = {}
    for target_size_per in ("batch", "sample"):
        for length in LENGTHS:
            sampler = MultiBlockMask(
                grid, **blocks, target_size_per=target_size_per, context_length=length
            )
            calls[f"MultiBlockMask, {length}, sizes per {target_size_per}"] = partial(
                sampler, batch
            )
    published = partial(published_clip_masks, grid, batch, num_blocks=count, scale=scale)
    return calls | {"published collator": published}


def rates(calls: dict[str, Callable[[], object]], batch: int, rounds: int) -> dict[str, float]:
    """Images per second: medians over the rounds."""
    times = in_turns(calls, rounds, torch.device("cpu"), clock=time.process_time)
    return {name: batch / statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--write", type=Path, help="result file, .json; its table beside it")
    parser.set_defaults(data="no data", seeds=[0])
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seeds[0])
    random.seed(args.seeds[0])
    batch, rounds = args.batch, args.rounds
    rows: list[dict[str, Any]] = []
    tables = {"the paper's masks": papers} | {
        f"V-JEPA's masks, {name}": partial(clips, *blocks) for name, blocks in CLIP_SETS.items()
    }
    for title, calls in tables.items():
        # A batch of one: what a call costs whatever the batch.
        measured = rates(calls(batch=batch), batch, rounds), rates(calls(batch=1), 1, rounds)
        for name in measured[0]:
            row = {"kind": "sampler", "title": title, "name": name, "rate": measured[0][name]}
            rows.append(row | {"batch": batch, "ms_of_one": 1e3 / measured[1][name]})
    for mode, sampler in modes():
        loop = partial(naive_masks, GRID, batch, mode)
        rate = rates({"jepakit": partial(sampler, batch), "loop": loop}, batch, rounds)
        rows.append({"kind": "mode", **mode._asdict(), **rate})
    shape = f"{GRID[0]} x {GRID[1]} tokens, clips of 8 times as many, batch {batch}, one thread"
    save(args, rows, table, values=f"{shape}; medians of {rounds} rounds")


def table(rows: list[dict[str, Any]]) -> str:
    """Samplers of the papers' masks, for images and clips; modes beside the loop."""
    samplers = [row for row in rows if row["kind"] == "sampler"]
    tables = []
    for title in dict.fromkeys(row["title"] for row in samplers):
        chosen = [row for row in samplers if row["title"] == title]
        published = next(row for row in chosen if row["name"] == "published collator")
        batch = published["batch"]
        lines = [f"| {title} | samples/s, batch {batch} | of published | ms for a batch of 1 |"]
        lines += ["|---" * 4 + "|"]
        for row in chosen:
            ratio, one = row["rate"] / published["rate"], row["ms_of_one"]
            lines.append(f"| {row['name']} | {row['rate']:,.0f} | {ratio:.1f} | {one:.2f} |")
        tables.append("\n".join(lines))
    lines = ["| target_size_per | context_length | overlap | jepakit | loop | ratio |"]
    lines += ["|---" * 6 + "|"]
    for row in rows:
        if row["kind"] == "mode":
            overlap = "yes" if row["overlap"] else "no"
            ratio = f"{row['jepakit'] / row['loop']:.1f}"
            rate, loop_rate = (f"{row[side]:,.0f}" for side in ("jepakit", "loop"))
            cells = row["target_size_per"], row["context_length"], overlap, rate, loop_rate, ratio
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n\n".join([*tables, "\n".join(lines)])


if __name__ == "__main__":
    main()
