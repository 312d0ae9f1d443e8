"""Random samplers of every class, for property tests; the strategy is in `tests.strategies`."""

import math
import random
from collections.abc import Callable
from typing import Any

from jepakit.masking import (
    BlockMask,
    CausalMask,
    ComplementMask,
    InfeasibleMaskError,
    InverseBlockMask,
    MultiBlockMask,
    MultiContextMask,
    NestedMask,
    RandomMask,
    TubeMask,
    UnionMask,
)

Grid = tuple[int, ...]
# Largest sides, by the number of axes.
LARGEST: dict[int, Grid] = {1: (1024,), 2: (32, 32), 3: (16, 24, 24)}
SMALL: dict[int, Grid] = {1: (20,), 2: (9, 9), 3: (4, 5, 5)}


def needed_tokens(min_context_coverage: float, num_positions: int) -> int:
    """Tokens of a coverage, at least 1."""
    return max(1, math.ceil(min_context_coverage * num_positions - 1e-9))


def random_grid(rng: random.Random, axes: int, largest: dict[int, Grid]) -> Any:
    """Sides of 2 or more, sometimes 1; at least 2 positions."""
    sides = [rng.randint(min(2, side), side) for side in largest[axes]]
    for axis in range(axes):
        if rng.randint(0, 9) == 9 and math.prod(sides) > sides[axis]:
            sides[axis] = 1
    return tuple(sides)


def between(rng: random.Random, low: float, high: float) -> tuple[float, float]:
    """A range within a range, uniform in logarithms."""
    ends = sorted(math.exp(rng.uniform(math.log(low), math.log(high))) for _ in range(2))
    return ends[0], rng.choice([ends[0], ends[1]])


def multiblock_arguments(rng: random.Random, grid_size: Grid) -> dict[str, Any]:
    """Arguments of a `MultiBlockMask` on a grid; most of them feasible."""
    integer, fraction, choose = rng.randint, rng.uniform, rng.choice
    size = math.prod(grid_size)
    num_targets = integer(1, 8)
    overlap = choose([True, True, False])
    # Small blocks for many disjoint targets, up to half of the grid otherwise.
    most = 0.5 if overlap else 0.4 / num_targets
    high = math.exp(fraction(math.log(0.004), math.log(most)))
    low = high * choose([1.0, fraction(0.2, 1.0)])
    a0 = math.exp(fraction(-1.2, 0.8))
    a1 = a0 * math.exp(fraction(0.0, 1.0)) if choose([True, True, False]) else a0
    c1 = choose([1.0, fraction(0.3, 1.0)])
    c0 = c1 * choose([1.0, fraction(0.3, 1.0)])
    room = max(0.0, c1 - high * (1 if overlap else num_targets))
    coverage = choose([0.0, room, room * fraction(0.0, 1.0), room * fraction(0.0, 1.0)])
    length = choose(["fixed", "fixed", "pad", "trim", "int"])
    arguments: dict[str, Any] = {
        "num_targets": num_targets,
        "target_scale": (low, high),
        "target_aspect_ratio": (a0, a1),
        "context_scale": (c0, c1),
        "min_context_coverage": coverage,
        "allow_target_overlap": overlap,
        "target_size_per": choose(["batch", "sample"]),
    }
    if len(grid_size) == 1:
        del arguments["target_aspect_ratio"]
    if len(grid_size) == 3 and grid_size[0] > 1:
        arguments["temporal_scale"] = between(rng, 0.05, 1.0)
        arguments["context_frames_ratio"] = choose([1.0, 1.0, fraction(0.1, 1.0)])
        arguments["min_context_coverage"] *= choose([1.0, 0.5, 0.1])
    need = needed_tokens(arguments["min_context_coverage"], size)
    if length != "pad":
        arguments["context_subset"] = choose(["random", "nearest"])
    return arguments | {"context_length": integer(1, need) if length == "int" else length}


def multi_block(rng: random.Random, axes: int, largest: dict[int, Grid]) -> MultiBlockMask:
    grid = random_grid(rng, axes, largest)
    return MultiBlockMask(grid, **multiblock_arguments(rng, grid))


def random_mask(rng: random.Random, axes: int, largest: dict[int, Grid]) -> RandomMask:
    grid = random_grid(rng, axes, largest)
    sampler = RandomMask(grid, target_ratio=rng.uniform(0.01, 0.99))
    rest = math.prod(grid) - sampler.num_target_tokens
    length: Any = rng.choice(["pad", rng.randint(1, rest)])
    return RandomMask(grid, target_ratio=sampler.target_ratio, context_length=length)


def random_block_scale(
    rng: random.Random, ratio: float, grid: tuple[int, int]
) -> tuple[float, float]:
    """A range of block areas; a single value where the smallest block is the whole set anyway."""
    low, high = between(rng, 0.03, 1.0)
    size = math.prod(grid)
    count = min(max(1, math.floor(ratio * size + 0.5)), size - 1)
    smallest = max(1, math.floor(low * size + 0.5))
    return (high, high) if smallest >= count else (low, high)


def block(rng: random.Random, axes: int, largest: dict[int, Grid]) -> BlockMask:
    grid, ratio = random_grid(rng, 2, largest), rng.uniform(0.01, 0.99)
    return BlockMask(
        grid,
        target_ratio=ratio,
        block_scale=random_block_scale(rng, ratio, grid),
        block_aspect_ratio=between(rng, 0.1, 10.0),
    )


def inverse_block(rng: random.Random, axes: int, largest: dict[int, Grid]) -> InverseBlockMask:
    grid, ratio = random_grid(rng, 2, largest), rng.uniform(0.01, 0.99)
    return InverseBlockMask(
        grid,
        context_ratio=ratio,
        block_scale=rng.choice([(1.0, 1.0), random_block_scale(rng, ratio, grid)]),
        block_aspect_ratio=between(rng, 0.1, 10.0),
    )


def causal(rng: random.Random, axes: int, largest: dict[int, Grid]) -> CausalMask:
    grid, axis = random_grid(rng, axes, largest), rng.randrange(axes)
    side, count = grid[axis], rng.randint(1, 3)
    steps: int | None = rng.randint(1, max(1, side // (2 * count)))
    most = max(1, side - count * (steps or 1))
    if count == 1 and rng.random() < 0.5:
        steps, most = None, max(1, side - 1)
    fewest = rng.randint(1, most)
    return CausalMask(
        grid,
        axis=axis,
        num_context_steps=rng.choice([None, (fewest, rng.randint(fewest, most))]),
        num_targets=count,
        num_target_steps=steps,
        context_size_per=rng.choice(["batch", "sample"]),
    )


def nested(rng: random.Random, axes: int, largest: dict[int, Grid]) -> NestedMask:
    grid = random_grid(rng, axes, largest)
    levels = rng.randint(1, min(3, max(grid).bit_length()))
    coarsest = tuple(-(-side // (1 << (levels - 1))) for side in grid)
    arguments = multiblock_arguments(rng, coarsest)
    for name in ("temporal_scale", "context_frames_ratio"):
        arguments.pop(name, None)
    arguments["target_scale"] = between(rng, 0.05, 0.4)
    arguments["num_targets"] = rng.randint(1, 4)
    arguments["min_context_coverage"] = rng.uniform(0.0, 0.5)
    if isinstance(arguments["context_length"], int):
        need = needed_tokens(arguments["min_context_coverage"], math.prod(coarsest))
        arguments["context_length"] = rng.randint(1, need)
    return NestedMask(grid, MultiBlockMask(coarsest, **arguments))


def tube(rng: random.Random, axes: int, largest: dict[int, Grid]) -> TubeMask:
    make = rng.choice([multi_block, random_mask, block, inverse_block])
    frames, *space = largest[3]
    return TubeMask(rng.randint(1, frames), make(rng, 2, {2: tuple(space)}))


def complement(rng: random.Random, axes: int, largest: dict[int, Grid]) -> ComplementMask:
    make = rng.choice([multi_block, random_mask, causal, nested])
    return ComplementMask(make(rng, axes, largest))


def union(rng: random.Random, axes: int, largest: dict[int, Grid]) -> UnionMask:
    make = rng.choice([multi_block, multi_block, causal, nested])
    return UnionMask(make(rng, axes, largest))


def mixture(rng: random.Random, axes: int, largest: dict[int, Grid]) -> MultiContextMask:
    grid = random_grid(rng, axes, largest)
    exact = {axes: grid}
    members: list[Any] = []
    while len(members) < rng.randint(1, 3):
        kinds = [multi_block, random_mask, complement, union]
        found = feasible(rng.choice(kinds), rng, axes, exact)
        if found.grid_size == grid:
            members.append(found)
        else:
            members.append(RandomMask(grid, target_ratio=rng.uniform(0.1, 0.9)))
    return MultiContextMask(tuple(members))


# For each class: the function that draws a sampler, and the numbers of axes of its grids.
KINDS: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "MultiBlockMask": (multi_block, (1, 2, 3)),
    "RandomMask": (random_mask, (1, 2, 3)),
    "BlockMask": (block, (2,)),
    "InverseBlockMask": (inverse_block, (2,)),
    "TubeMask": (tube, (3,)),
    "MultiContextMask": (mixture, (1, 2, 3)),
    "CausalMask": (causal, (1, 2, 3)),
    "NestedMask": (nested, (1, 2, 3)),
    "ComplementMask": (complement, (1, 2, 3)),
    "UnionMask": (union, (1, 2, 3)),
}


def feasible(
    make: Callable[..., Any], rng: random.Random, axes: int, largest: dict[int, Grid]
) -> Any:
    """Draw until a sampler is feasible."""
    while True:
        try:
            return make(rng, axes, largest)
        except InfeasibleMaskError:
            continue


def random_sampler(kind: str, rng: random.Random, largest: dict[int, Grid] = LARGEST) -> Any:
    """A feasible sampler of the class with this name."""
    make, axes = KINDS[kind]
    return feasible(make, rng, rng.choice(axes), largest)
