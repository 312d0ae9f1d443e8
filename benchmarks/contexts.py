"""Contexts of `MultiBlockMask` in every mode beside the published sampler's: counts, no training.

    python benchmarks/contexts.py --write benchmarks/results/contexts.json

For each mode, over many batches of one size: context tokens; how much more often a context is in
the top than in the bottom quarter of the rows; the most that the map of frequencies differs from
its mirror images, in standard errors (below 5 is chance); what a predictor has at hand, as the
mean distance from a target's cell to the nearest context token, in patches, and the fraction of a
token's neighbours that are context too; lengths that a compiled step meets; multiply-adds of the
student's encoder and of the predictor for one ViT-S image, as a multiple of the published
sampler's.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from runs import save, unbroken
from torch import Tensor

from jepakit import Masks, MultiBlockMask
from jepakit.masking import MaskSampler, ReferenceMultiBlockMask

GRID = (14, 14)


def samplers() -> dict[str, MaskSampler[Masks]]:
    """Rows of the table."""
    modes: list[dict[str, Any]] = [
        {"context_length": "fixed", "context_subset": "random"},
        {"context_length": "fixed", "context_subset": "nearest"},
        {"context_length": "trim", "context_subset": "random"},
        {"context_length": "trim", "context_subset": "nearest"},
        {"context_length": "pad"},
    ]
    named = {", ".join(map(str, mode.values())): MultiBlockMask(GRID, **mode) for mode in modes}
    return {"published": ReferenceMultiBlockMask(GRID)} | named


def multiply_adds(length: float, num_targets: int, target_length: float) -> float:
    """Of one image through ViT-S as student and a predictor of 6 blocks of 384, forward."""

    def blocks(tokens: float, width: int, depth: int) -> float:
        return depth * (12 * tokens * width**2 + 2 * tokens**2 * width)

    return blocks(length, 384, 12) + num_targets * blocks(length + target_length, 384, 6)


def describe(sampler: MaskSampler[Masks], batch: int, batches: int) -> dict[str, Any]:
    """Counts over the batches."""
    generator = torch.Generator().manual_seed(0)
    counts, maps, distances, neighbours, lengths, costs = [], [], [], [], set(), []
    for _ in range(batches):
        masks = sampler(batch, generator=generator)
        context = masks.context.to_mask()
        hidden = masks.targets.to_mask().any(dim=1)
        counts.append(context.sum(dim=1))
        maps.append(context.double().mean(dim=0).view(GRID))
        distances.append(distance_to_context(context, hidden))
        neighbours.append(neighbour_ratio(context))
        lengths.add(masks.context.shape[1])
        costs.append(multiply_adds(masks.context.shape[1], *masks.targets.shape[1:]))
    count, field = torch.cat(counts).double(), torch.stack(maps)
    mean = field.mean(dim=0)
    quarter = GRID[0] // 4
    return {
        "mean": float(count.mean()),
        "least": int(count.min()),
        "most": int(count.max()),
        "top_to_bottom": float(mean[:quarter].mean() / mean[-quarter:].mean().clamp_min(1e-9)),
        "asymmetry": asymmetry(field),
        "distance": sum(distances) / batches,
        "neighbour_ratio": sum(neighbours) / batches,
        "lengths": len(lengths),
        "multiply_adds": sum(costs) / batches,
    }


def distance_to_context(context: Tensor, hidden: Tensor) -> float:
    """Mean distance, in patches, from the cells of targets to the nearest context token."""
    cell = torch.cartesian_prod(torch.arange(GRID[0]), torch.arange(GRID[1])).double()
    apart = torch.cdist(cell, cell)
    nearest = torch.where(context[:, None], apart, math.inf).amin(dim=2)
    return float(nearest[hidden].mean())


def neighbour_ratio(context: Tensor) -> float:
    """Fraction of a token's neighbours above, below, left and right that are context."""
    field = context.view(-1, *GRID).double()
    pairs = (field[:, 1:] * field[:, :-1]).sum() + (field[:, :, 1:] * field[:, :, :-1]).sum()
    return float(2 * pairs / (4 * field.sum()))


def asymmetry(field: Tensor) -> float:
    """Largest difference of the mean map from its mirror images, in standard errors.

    Not from its transpose: aspect ratios of 0.75 to 1.5 make targets higher than wide.
    """
    worst = 0.0
    for axis in (1, 2):
        difference = field - field.flip(axis)
        error = difference.std(dim=0) / math.sqrt(len(field))
        worst = max(worst, float((difference.mean(dim=0).abs() / error.clamp_min(1e-9)).max()))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=400)
    parser.add_argument("--write", type=Path, help="result file, .json; its table beside it")
    parser.set_defaults(data="no data", seeds=[0])
    args = parser.parse_args()
    rows = [
        {"name": name, **describe(sampler, args.batch, args.batches)}
        for name, sampler in samplers().items()
    ]
    shape = f"{GRID[0]} x {GRID[1]} patches, {args.batches} batches of {args.batch}"
    save(args, rows, table, values=shape)


def table(rows: list[dict[str, Any]]) -> str:
    """Two tables with one row for each mode: cost, and what is visible."""
    lines = [
        "| `context_length`, `context_subset` | context tokens | lengths | multiply-adds |",
        "|---|---|---|---|",
    ]
    for row in rows:
        tokens = unbroken(f"{row['mean']:.1f} ({row['least']} to {row['most']})")
        cost = row["multiply_adds"] / rows[0]["multiply_adds"]
        lines.append(f"| {row['name']} | {tokens} | {row['lengths']} | {cost:.2f} |")
    lines += ["", "| | top / bottom | asymmetry | distance | neighbours |", "|---|---|---|---|---|"]
    for row in rows:
        cells = [
            row["name"],
            f"{row['top_to_bottom']:.2f}",
            f"{row['asymmetry']:.1f}",
            f"{row['distance']:.2f}",
            unbroken(f"{100 * row['neighbour_ratio']:.0f} %"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
