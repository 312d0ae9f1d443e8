"""Time to sample multi-block masks: `MultiBlockMask` in every mode beside a loop over samples.

Then masks for video, and the samplers of lightly and stable-pretraining, where installed.

    python benchmarks/masks.py [--batch 128] [--grid 14 14] [--rounds 9] [--calls 10]

One CPU thread. Rounds of both are interleaved, so that a busy machine disturbs both alike; the
table shows medians over rounds. The loop does what is usual: for each sample it draws sizes and
places with Python's `random`, paints torch masks, and lists the positions left. It keeps no floor
on the context, so it is spared that work.
"""

import argparse
import math
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import product

import torch

from jepakit import MultiBlockMask

TARGET_SCALE = (0.15, 0.2)
DISJOINT_SCALE = (0.08, 0.1)  # four disjoint blocks of the paper's size do not always fit


def naive_masks(
    grid_size: tuple[int, int],
    batch_size: int,
    *,
    target_scale: tuple[float, float],
    block_size: str,
    context_length: str | int,
    disjoint: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks sample by sample: indices of the contexts, padded or cut, and of the targets."""
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
        if block_size == "sample":
            size = draw_size(target_scale, (0.75, 1.5))
        context = torch.zeros(height, width, dtype=torch.bool)
        context[draw_block(*draw_size((0.85, 1.0), (1.0, 1.0)))] = True
        taken = torch.zeros(height, width, dtype=torch.bool)
        blocks = []
        for _ in range(4):
            block = draw_block(*size)
            for _ in range(20 if disjoint else 0):  # gives up, as published codes do
                if not taken[block].any():
                    break
                block = draw_block(*size)
            taken[block] = True
            one = torch.zeros(height, width, dtype=torch.bool)
            one[block] = True
            blocks.append(one.flatten().nonzero().squeeze(1))
        contexts.append((context & ~taken).flatten().nonzero().squeeze(1))
        targets.extend(blocks)
    if context_length != "pad":
        shortest = min(len(context) for context in contexts)
        length = shortest if context_length == "trim" else min(int(context_length), shortest)
        contexts = [
            context[torch.randperm(len(context))[:length].sort().values] for context in contexts
        ]
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(contexts, batch_first=True), pad(targets, batch_first=True)


def seconds(function: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def of_others(grid: tuple[int, int], batch: int) -> dict[str, Callable[[], object]]:
    """One batch of I-JEPA masks by other libraries, of those that are installed."""
    found: dict[str, Callable[[], object]] = {}
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
        found["lightly, IJEPAMaskCollator"] = lambda: collator(samples)
    try:
        from stable_pretraining.data.transforms import ContextTargetsMultiBlockMask
    except ImportError:
        print("stable-pretraining: not installed")
    else:
        transform, image = ContextTargetsMultiBlockMask(16), torch.zeros(3, *pixels)
        found["stable-pretraining, ContextTargetsMultiBlockMask"] = lambda: [
            transform({"image": image}) for _ in range(batch)
        ]
    return found


def compare(rows: dict[str, Callable[[], object]], batch: int, rounds: int) -> None:
    """A table of images/s, each row beside the first."""
    times: dict[str, list[float]] = {name: [] for name in rows}
    for call in rows.values():
        seconds(call, 1)
    for _ in range(rounds):
        for name, call in rows.items():
            times[name].append(seconds(call, 1))
    rates = {name: batch / statistics.median(values) for name, values in times.items()}
    first = next(iter(rates.values()))
    print("| sampler | images/s | of the first |\n|---|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:,.0f} | {rate / first:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--grid", type=int, nargs=2, default=(14, 14))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    grid = (options.grid[0], options.grid[1])
    batch = options.batch

    print(f"grid {grid[0]} x {grid[1]}, batch {batch}, 4 targets, one thread, images/s (median)\n")
    print(
        "| block_size | context_length | overlap | min_context_coverage | jepakit | loop | ratio |"
    )
    print("|---|---|---|---|---|---|---|")
    slowest = math.inf
    for block_size, length, overlap, coverage in product(
        ("batch", "sample"), ("pad", "trim", 40), (True, False), (0.25, 0.4)
    ):
        scale = TARGET_SCALE if overlap else DISJOINT_SCALE
        need = max(1, math.ceil(coverage * math.prod(grid)))
        sampler = MultiBlockMask(
            grid,
            target_scale=scale,
            min_context_coverage=coverage,
            allow_target_overlap=overlap,
            block_size=block_size,
            context_length=min(length, need) if isinstance(length, int) else length,
        )

        def ours(sampler: MultiBlockMask = sampler) -> object:
            return sampler(batch)

        def loop(arguments: tuple = (scale, block_size, length, overlap)) -> object:
            scale, block_size, length, overlap = arguments
            return naive_masks(
                grid,
                batch,
                target_scale=scale,
                block_size=block_size,
                context_length=length,
                disjoint=not overlap,
            )

        seconds(ours, 3)
        times: dict[str, list[float]] = {"ours": [], "loop": []}
        for _ in range(options.rounds):
            times["ours"].append(seconds(ours, options.calls))
            times["loop"].append(seconds(loop, 1))
        rates = {name: batch / statistics.median(values) for name, values in times.items()}
        slowest = min(slowest, rates["ours"])
        print(
            f"| {block_size} | {length} | {'yes' if overlap else 'no'} | {coverage} "
            f"| {rates['ours']:,.0f} | {rates['loop']:,.0f} "
            f"| {rates['ours'] / rates['loop']:.0f} x |",
            flush=True,
        )
    print(f"\nslowest mode: {slowest:,.0f} images/s\n")

    print(f"The paper's masks, grid {grid[0]} x {grid[1]}, batch {batch}\n")
    ours = {"jepakit, MultiBlockMask": lambda: MultiBlockMask(grid, context_length="trim")(batch)}
    compare(ours | of_others(grid, batch), batch, options.rounds)

    video = (8, *grid)
    print(f"\nV-JEPA's masks, grid {video[0]} x {video[1]} x {video[2]}, batch {batch}\n")
    sets = {"short, 8 x 15 %": (8, 0.15), "long, 2 x 70 %": (2, 0.7)}
    samplers = {
        f"{name}, block_size={block_size}": MultiBlockMask(
            video,
            num_targets=count,
            target_scale=(scale, scale),
            context_scale=(1.0, 1.0),
            min_context_coverage=0.05,
            block_size=block_size,
        )
        for name, (count, scale) in sets.items()
        for block_size in ("batch", "sample")
    }
    compare(
        {name: partial(sampler, batch) for name, sampler in samplers.items()}, batch, options.rounds
    )


if __name__ == "__main__":
    main()
