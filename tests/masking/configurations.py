"""Random samplers of every kind, most of them feasible, for fuzzing what they promise."""

import math
import random
from collections.abc import Callable
from typing import Any

from tests.strategies import random_multiblock_case

from jepakit import InfeasibleMaskError, MultiBlockMask, RandomMask
from jepakit.masking import (
    BlockMask,
    CausalMask,
    ComplementMask,
    InverseBlockMask,
    MixtureMask,
    NestedMultiBlockMask,
    TubeMask,
)

LARGEST = {1: (1024,), 2: (32, 32), 3: (16, 24, 24)}
SMALL = {1: (20,), 2: (9, 9), 3: (4, 5, 5)}


def random_grid(rng: random.Random, axes: int, largest: dict[int, tuple[int, ...]]) -> Any:
    return tuple(rng.randint(2, side) for side in largest[axes])


def between(rng: random.Random, low: float, high: float) -> tuple[float, float]:
    """A range within a range, uniform in logarithms."""
    ends = sorted(math.exp(rng.uniform(math.log(low), math.log(high))) for _ in range(2))
    return ends[0], rng.choice([ends[0], ends[1]])


def multi_block(rng: random.Random, axes: int, largest: dict) -> MultiBlockMask:
    _, arguments = random_multiblock_case(rng)
    grid = random_grid(rng, axes, largest)
    if axes == 1:
        del arguments["target_aspect_ratio"]
    if axes == 3:
        arguments["temporal_scale"] = between(rng, 0.05, 1.0)
        arguments["max_temporal_keep"] = rng.choice([1.0, 1.0, rng.uniform(0.1, 1.0)])
        arguments["min_context_coverage"] *= rng.choice([1.0, 0.5, 0.1])
    if isinstance(arguments["context_length"], int):
        need = max(1, math.ceil(arguments["min_context_coverage"] * math.prod(grid) - 1e-9))
        arguments["context_length"] = rng.randint(1, need)
    return MultiBlockMask(grid, **arguments)


def random_mask(rng: random.Random, axes: int, largest: dict) -> RandomMask:
    grid = random_grid(rng, axes, largest)
    sampler = RandomMask(grid, target_ratio=rng.uniform(0.01, 0.99))
    rest = math.prod(grid) - sampler.num_target_tokens
    length = rng.choice(["pad", rng.randint(1, rest)])
    return RandomMask(grid, target_ratio=sampler.target_ratio, context_length=length)


def block(rng: random.Random, axes: int, largest: dict) -> BlockMask:
    return BlockMask(
        random_grid(rng, 2, largest),
        target_ratio=rng.uniform(0.01, 0.99),
        block_scale=between(rng, 0.03, 1.0),
        block_aspect_ratio=between(rng, 0.1, 10.0),
    )


def inverse_block(rng: random.Random, axes: int, largest: dict) -> InverseBlockMask:
    return InverseBlockMask(
        random_grid(rng, 2, largest),
        context_ratio=rng.uniform(0.01, 0.99),
        block_scale=rng.choice([(1.0, 1.0), between(rng, 0.03, 1.0)]),
        block_aspect_ratio=between(rng, 0.1, 10.0),
    )


def causal(rng: random.Random, axes: int, largest: dict) -> CausalMask:
    grid = random_grid(rng, axes, largest)
    count = rng.randint(1, 3)
    steps = rng.randint(1, max(1, grid[0] // (2 * count)))
    most = grid[0] - count * steps
    past = tuple(sorted(rng.randint(1, max(1, most)) for _ in range(2)))
    if count == 1 and rng.random() < 0.5:
        steps, past = None, tuple(min(end, grid[0] - 1) for end in past)
    return CausalMask(
        grid,
        num_context_steps=rng.choice([None, past]),
        num_targets=count,
        num_target_steps=steps,
        block_size=rng.choice(["batch", "sample"]),
    )


def nested(rng: random.Random, axes: int, largest: dict) -> NestedMultiBlockMask:
    _, arguments = random_multiblock_case(rng)
    grid = random_grid(rng, axes, largest)
    if axes == 1:
        del arguments["target_aspect_ratio"]
    arguments["target_scale"] = between(rng, 0.05, 0.4)
    arguments["num_targets"] = rng.randint(1, 4)
    arguments["min_context_coverage"] = rng.uniform(0.0, 0.5)
    levels = rng.randint(1, 3)
    cells = math.prod(-(-side // 2 ** (levels - 1)) for side in grid)
    if isinstance(arguments["context_length"], int):
        need = max(1, math.ceil(arguments["min_context_coverage"] * cells - 1e-9))
        arguments["context_length"] = rng.randint(1, need)
    return NestedMultiBlockMask(grid, num_levels=levels, **arguments)


def tube(rng: random.Random, axes: int, largest: dict) -> TubeMask:
    make = rng.choice([multi_block, random_mask, block, inverse_block])
    frames, *space = largest[3]
    return TubeMask(rng.randint(1, frames), make(rng, 2, {2: tuple(space)}))


def complement(rng: random.Random, axes: int, largest: dict) -> ComplementMask:
    make = rng.choice([multi_block, random_mask, causal, nested])
    return ComplementMask(make(rng, axes, largest))


def mixture(rng: random.Random, axes: int, largest: dict) -> MixtureMask:
    grid = random_grid(rng, axes, largest)
    exact = {axes: grid}
    members: list[Any] = []
    while len(members) < rng.randint(1, 3):
        kinds = [multi_block, random_mask, complement]
        found = feasible(rng.choice(kinds), rng, axes, exact)
        if found.grid_size == grid:
            members.append(found)
        else:
            members.append(RandomMask(grid, target_ratio=rng.uniform(0.1, 0.9)))
    return MixtureMask(tuple(members))


# For each sampler, what draws one and on grids of how many axes.
KINDS: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "MultiBlockMask": (multi_block, (1, 2, 3)),
    "RandomMask": (random_mask, (1, 2, 3)),
    "BlockMask": (block, (2,)),
    "InverseBlockMask": (inverse_block, (2,)),
    "TubeMask": (tube, (3,)),
    "MixtureMask": (mixture, (1, 2, 3)),
    "CausalMask": (causal, (1, 2, 3)),
    "NestedMultiBlockMask": (nested, (1, 2, 3)),
    "ComplementMask": (complement, (1, 2, 3)),
}


def feasible(
    make: Callable[..., Any], rng: random.Random, axes: int, largest: dict[int, tuple[int, ...]]
) -> Any:
    """The first sampler drawn that exists."""
    while True:
        try:
            return make(rng, axes, largest)
        except InfeasibleMaskError:
            continue


def random_sampler(
    kind: str, rng: random.Random, largest: dict[int, tuple[int, ...]] = LARGEST
) -> Any:
    """A feasible sampler of a kind."""
    make, axes = KINDS[kind]
    return feasible(make, rng, rng.choice(axes), largest)
