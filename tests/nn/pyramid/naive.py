"""A pyramid cell by cell, in plain Python: what the vectorised one must equal.

Positions are coordinates, a field of one sample is a dict from coordinates to vectors; what is not
in it is not there.
"""

import itertools
import math

import torch
from torch import Tensor

from jepakit import HierarchicalPyramid, TokenSet

Place = tuple[int, ...]


def naive_levels(
    pyramid: HierarchicalPyramid, features: Tensor, tokens: TokenSet
) -> list[list[dict[Place, Tensor]]]:
    """For each level, for each sample, its cells."""
    samples = []
    for x, idx, valid in zip(features, tokens.idx, tokens.valid, strict=True):
        finest = {
            unravel(int(position), pyramid.grid_size): vector
            for position, vector, there in zip(idx, x, valid, strict=True)
            if there
        }
        samples.append(_sample(pyramid, finest))
    return [[sample[level] for sample in samples] for level in range(pyramid.num_levels)]


def dense(fields: list[dict[Place, Tensor]], grid: Place, dim: int) -> tuple[Tensor, Tensor]:
    """Fields of all samples as `[b N d]`, zeros where nothing is, and as a mask `[b N]`."""
    places = list(itertools.product(*map(range, grid)))
    zero = torch.zeros(dim)
    field = torch.stack([torch.stack([f.get(p, zero) for p in places]) for f in fields])
    return field, torch.tensor([[p in f for p in places] for f in fields])


def unravel(position: int, grid: Place) -> Place:
    place = []
    for side in reversed(grid):
        place.append(position % side)
        position //= side
    return tuple(reversed(place))


def _sample(pyramid: HierarchicalPyramid, finest: dict[Place, Tensor]) -> list[dict[Place, Tensor]]:
    levels = [finest]
    before = finest  # what convolutions start from: every cell with something under it
    for level in range(1, pyramid.num_levels):
        size = 2**level
        under: dict[Place, list[Place]] = {}
        for place in finest:
            under.setdefault(tuple(k // size for k in place), []).append(place)
        cells = {}
        for cell, places in under.items():
            x = torch.stack([finest[place] for place in places])
            if pyramid.pool == "avg":
                cells[cell] = x.mean(dim=0)
            elif pyramid.pool == "max":
                cells[cell] = x.amax(dim=0)
            elif pyramid.pool == "attention":
                query = pyramid.pooling.queries[level - 1]
                cells[cell] = (x @ query / math.sqrt(len(query))).softmax(dim=0) @ x
            else:
                cells[cell] = _convolved(pyramid, level, cell, before, finest)
        before = cells
        if pyramid.valid_if == "all":
            cells = {c: v for c, v in cells.items() if len(under[c]) == _area(c, size, pyramid)}
        levels.append(cells)
    return _finished(pyramid, levels)


def _convolved(
    pyramid: HierarchicalPyramid,
    level: int,
    cell: Place,
    finer: dict[Place, Tensor],
    finest: dict[Place, Tensor],
) -> Tensor:
    dim, half = pyramid.dim, 2 ** (level - 1)
    kernel = pyramid.pooling.weights[level - 1].view(dim, -1, dim)
    parts, sizes, kernels = [], [], []
    for number, step in enumerate(itertools.product((0, 1), repeat=len(cell))):
        child = tuple(2 * k + s for k, s in zip(cell, step, strict=True))
        if child in finer:
            parts.append(finer[child])
            kernels.append(kernel[:, number])
            sizes.append(sum(tuple(k // half for k in place) == child for place in finest))
    mean = sum(size * part for size, part in zip(sizes, parts, strict=True)) / sum(sizes)
    return mean + sum(k @ (part - mean) for k, part in zip(kernels, parts, strict=True))


def _area(cell: Place, size: int, pyramid: HierarchicalPyramid) -> int:
    sides = zip(cell, pyramid.grid_size, strict=True)
    return math.prod(min(size, side - size * k) for k, side in sides)


def _finished(
    pyramid: HierarchicalPyramid, levels: list[dict[Place, Tensor]]
) -> list[dict[Place, Tensor]]:
    if pyramid.fusion is not None:
        for level in reversed(range(pyramid.num_levels)):
            lateral, fused = pyramid.top_down.laterals[level], {}
            for place, x in levels[level].items():
                if level == pyramid.num_levels - 1:
                    fused[place] = lateral(x)
                    continue
                grid = pyramid.grid_sizes[level + 1]
                above = _above(place, levels[level + 1], grid, pyramid.upsample, x)
                if pyramid.fusion == "fpn-add":
                    fused[place] = lateral(x) + above
                else:
                    fused[place] = lateral(torch.cat([x, above]))
            levels[level] = fused
    for maps in ("projections", "norms"):
        if hasattr(pyramid, maps):
            levels = [
                {place: module(x) for place, x in cells.items()}
                for module, cells in zip(getattr(pyramid, maps), levels, strict=True)
            ]
    return levels


def _above(
    place: Place, coarse: dict[Place, Tensor], grid: Place, upsample: str, like: Tensor
) -> Tensor:
    """Value of the coarser level at a cell of the finer one."""
    own = tuple(k // 2 for k in place)
    if upsample == "nearest":
        return coarse.get(own, torch.zeros_like(like))
    total, share = torch.zeros_like(like), 0.0
    for far in itertools.product((False, True), repeat=len(place)):
        weight = math.prod(0.25 if f else 0.75 for f in far)
        # An odd cell leans to the next coarse one, an even cell to the one before, within the grid.
        there = tuple(
            min(max(o + (1 if k % 2 else -1), 0), side - 1) if f else o
            for o, k, f, side in zip(own, place, far, grid, strict=True)
        )
        if there in coarse:
            total, share = total + weight * coarse[there], share + weight
    return total / share if share else total
