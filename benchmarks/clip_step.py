"""Cost of a step of V-JEPA on 8x14x14 tubelets, beside the shapes of the published recipe.

    python benchmarks/clip_step.py --write benchmarks/results/clip_step.json

A step is the teacher on the whole clip, and for the short-range and the long-range set the student
on the context and the predictor on context and target, forward and backward. The published masks
are `published.clip_masks`, whose contexts and targets are cut to the shortest of the batch;
jepakit's are `vjepa_masks` with each length of contexts, whose targets are padded to the longest.
Both sides have the same modules, so multiply-adds depend on the numbers of tokens alone: they are
those of ViT-L/16 with a predictor of 12 blocks 384 wide. Times are of a smaller encoder on one
thread of the CPU, in interleaved rounds; masks are drawn before.
"""

import argparse
import functools
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from published import clip_masks
from runs import save
from timing import in_turns

import jepakit
from jepakit import Masks, TokenSet
from jepakit.masking import vjepa_masks
from jepakit.nn import TokenViT, Tubelets

Row = dict[str, Any]
GRID, TUBELET = (8, 14, 14), (2, 16, 16)
PUBLISHED = "published recipe"
LENGTHS = ("trim", "fixed", "pad")


class Size(NamedTuple):
    """Width and depth of encoder and predictor, and heads of both."""

    width: int
    depth: int
    predictor_width: int
    predictor_depth: int
    heads: int


LARGE, SMALL = Size(1024, 24, 384, 12, 16), Size(192, 4, 96, 4, 3)


def draw(way: str, batch_size: int, seed: int) -> list[Masks]:
    """The short-range and the long-range masks of a batch."""
    if way != PUBLISHED:
        sampler = vjepa_masks(GRID, context_length=way)
        return list(sampler(batch_size, generator=torch.Generator().manual_seed(seed)))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sets = []
        for num_blocks, scale in ((8, 0.15), (2, 0.7)):
            drawn = clip_masks(GRID, batch_size, num_blocks=num_blocks, scale=scale)
            context, target = (
                TokenSet(idx, torch.ones_like(idx, dtype=torch.bool), GRID, padded=False)
                for idx in drawn
            )
            sets.append(Masks(context, target[:, None]))
    return sets


def multiply_adds(sets: list[Masks], size: Size = LARGE) -> float:
    """Of all products of a step for one clip; padding is computed like any token."""

    def blocks(tokens: int, width: int, depth: int) -> int:
        return depth * (12 * tokens * width**2 + 2 * tokens**2 * width)

    total = GRID[0] * GRID[1] * GRID[2]
    pixels = 3 * TUBELET[0] * TUBELET[1] * TUBELET[2]
    cost = total * pixels * size.width + blocks(total, size.width, size.depth)  # the teacher
    for masks in sets:
        n, k = masks.context.shape[-1], masks.targets.shape[-1]
        cost += 2 * n * pixels * size.width  # pixels need no gradient
        cost += 3 * blocks(n, size.width, size.depth)
        cost += 3 * (n + k) * size.width * size.predictor_width
        cost += 3 * blocks(n + k, size.predictor_width, size.predictor_depth)
    return cost


def cost_rows(batch_size: int, draws: int) -> Iterator[Row]:
    """Tokens and multiply-adds, means over some batches."""
    counts: dict[str, list[float]] = {}
    for way in (PUBLISHED, *LENGTHS):
        batches = [draw(way, batch_size, seed) for seed in range(draws)]
        counts[way] = [multiply_adds(sets) for sets in batches]
        row: Row = {"name": way, "batch_size": batch_size}
        for number, role in enumerate(("short", "long")):
            for part in ("context", "targets"):
                lengths = [getattr(sets[number], part).shape[-1] for sets in batches]
                row[f"{role}_{part}"] = statistics.mean(lengths)
        row["multiply_adds"] = statistics.mean(counts[way])
        row["ratio"] = row["multiply_adds"] / statistics.mean(counts[PUBLISHED])
        yield row


class Step:
    """Modules, loss and optimiser; a call trains for one step."""

    def __init__(self, size: Size, grid: tuple[int, int, int] = GRID) -> None:
        torch.manual_seed(0)
        embed = Tubelets(TUBELET, size.width)
        self.encoder = TokenViT(
            grid, size.width, size.depth, size.heads, embed=embed, position="sincos"
        )
        self.teacher = jepakit.EMATeacher(self.encoder, 0.998)
        self.predictor = jepakit.MaskedPredictor(
            grid,
            size.width,
            predictor_embed_dim=size.predictor_width,
            depth=size.predictor_depth,
            num_heads=size.heads,
            joint=True,
            num_mask_tokens=2,
        )
        parameters = [*self.encoder.parameters(), *self.predictor.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def loss(self, clips: torch.Tensor, sets: list[Masks]) -> torch.Tensor:
        """Mean of the losses of both sets."""
        features = jepakit.normalize_targets(self.teacher(clips))
        losses = []
        for number, masks in enumerate(sets):
            context = self.encoder(clips, masks.context)
            pred = self.predictor(context, masks.context, masks.targets, mask_token=number)
            target = jepakit.take_tokens(features, masks.targets)
            losses.append(jepakit.masked_l1(pred, target, masks.targets.valid))
        return torch.stack(losses).mean()

    def __call__(self, clips: torch.Tensor, sets: list[Masks]) -> None:
        self.loss(clips, sets).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.teacher.update(self.encoder)


def time_ratios(batch_size: int, rounds: int, draws: int) -> dict[str, float]:
    """Median ratio of a step's time to the published shapes', with typical masks of each way."""
    step = Step(SMALL)
    clips = torch.randn(batch_size, 3, *(g * p for g, p in zip(GRID, TUBELET, strict=True)))
    calls = {}
    for way in (PUBLISHED, *LENGTHS):
        batches = [draw(way, batch_size, seed) for seed in range(draws)]
        costs = [multiply_adds(sets, SMALL) for sets in batches]
        mean = statistics.mean(costs)
        typical = min(range(draws), key=lambda i: abs(costs[i] - mean))
        calls[way] = functools.partial(step, clips, batches[typical])
    times = in_turns(calls, rounds, torch.device("cpu"))
    return {
        way: statistics.median(a / b for a, b in zip(values, times[PUBLISHED], strict=True))
        for way, values in times.items()
    }


def table(rows: list[Row]) -> str:
    """One line for each way."""
    lines = [
        "| | short: context, target | long: context, target | multiply-adds / 10⁹ | ratio | time |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = row["name"] if row["name"] == PUBLISHED else f"`context_length={row['name']!r}`"
        tokens = [
            f"{row[f'{role}_context']:.0f}, {row[f'{role}_targets']:.0f}"
            for role in ("short", "long")
        ]
        lines.append(
            f"| {name} | {' | '.join(tokens)} | {row['multiply_adds'] / 1e9:.0f} "
            f"| {row['ratio']:.2f} | {row['time_ratio']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=24, help="clips of the counted batches")
    parser.add_argument("--draws", type=int, default=40, help="batches that are drawn")
    parser.add_argument("--timed-clips", type=int, default=4, help="clips of the timed batches")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the times")
    parser.add_argument("--write", type=Path, help="result file, .json")
    args = parser.parse_args()
    args.data, args.seeds = "none", list(range(args.draws))
    torch.set_num_threads(1)
    ratios = time_ratios(args.timed_clips, args.rounds, min(args.draws, 20))
    rows = [
        row | {"time_ratio": ratios[row["name"]]} for row in cost_rows(args.batch_size, args.draws)
    ]
    save(args, rows, table, values="means over the batches; time is the median ratio of rounds")


if __name__ == "__main__":
    main()
