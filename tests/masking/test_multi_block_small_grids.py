"""Brute force: on small grids every legal arrangement of blocks is known."""

import math
import random
from dataclasses import replace
from functools import reduce
from itertools import product
from operator import or_

import torch

from jepakit import InfeasibleMaskError, MultiBlockMask

FEW = 80


def small_sampler(rng: random.Random) -> MultiBlockMask:
    """Any options on a small grid; in half of all, all that the targets can leave is needed."""
    overlap, count = rng.random() < 0.5, rng.randint(1, 3)
    high = rng.uniform(0.1, 0.9) if overlap else rng.uniform(0.4, 0.9) / count
    aspect, context = rng.uniform(0.3, 2.0), rng.uniform(0.5, 1.0)
    loose = MultiBlockMask(
        (rng.randint(2, 4), rng.randint(2, 4)),
        num_targets=count,
        target_scale=(high * rng.uniform(0.5, 1.0), high),
        target_aspect_ratio=(aspect, aspect * rng.uniform(1.0, 2.0)),
        context_scale=(context * rng.uniform(0.3, 1.0), context),
        min_context_coverage=0.0,
        allow_target_overlap=overlap,
        target_size_per=rng.choice(["batch", "sample"]),
    )
    most = (loose._largest_context - loose._target_cells) / math.prod(loose.grid_size)
    tight = replace(loose, min_context_coverage=rng.choice([most, most, 0.0, most * rng.random()]))
    return replace(
        tight,
        context_length=rng.choice(["pad", "pad", "trim", rng.randint(1, tight.min_context_tokens)]),
    )


def places(grid: tuple[int, ...], size: tuple[int, ...]) -> list[int]:
    """A block at each of its places; patches are bits."""
    (height, width), (h, w) = grid, size
    block = sum(1 << y * width + x for y, x in product(range(h), range(w)))
    starts = product(range(height - h + 1), range(width - w + 1))
    return [block << y * width + x for y, x in starts]


def legal(sampler: MultiBlockMask) -> set[tuple[int, int]]:
    """Context and cells of all targets, before any trimming, in every legal arrangement."""
    grid = sampler.grid_size
    contexts = {
        box
        for size in sampler._all_context_sizes(min_volume=0).sizes.tolist()
        for box in places(grid, size)
        if box.bit_count() >= sampler._promised_tokens + sampler._target_cells
    }
    found = set()
    for size in sampler._target_sizes:
        unions = {0}
        for _ in range(sampler.num_targets):
            unions = {
                union | box
                for union, box in product(unions, places(grid, size))
                if sampler.allow_target_overlap or not union & box
            }
        pairs = ((context & ~union, union) for context, union in product(contexts, unions))
        found |= {
            (left, union) for left, union in pairs if left.bit_count() >= sampler._promised_tokens
        }
    return found


def drawn(sampler: MultiBlockMask, generator: torch.Generator) -> set[tuple[int, int]]:
    batch = 200 if sampler.target_size_per == "batch" else 1000
    uniforms, push = torch.rand(2, batch, sampler.num_uniforms, generator=generator)
    # Some sizes are rare, those that take both ends of two ranges: half of all numbers move there.
    odds = (uniforms / (1 - uniforms)) ** 5
    uniforms = torch.where(push < 0.5, uniforms, (odds / (1 + odds)).clamp(max=1 - 2**-24))
    masks = sampler.from_uniforms(uniforms)
    fields = torch.stack([masks.context.to_mask(), masks.targets.to_mask().any(1)], dim=1)
    numbers = (fields.long() << torch.arange(fields.shape[2])).sum(dim=2)
    return {(left, union) for left, union in numbers.unique(dim=0).tolist()}


def roles(arrangements: set[tuple[int, int]]) -> list[int]:
    """Patches that are context, and that are target, in some arrangement."""
    return [reduce(or_, sets) for sets in zip(*arrangements, strict=True)]


def test_what_is_legal_is_drawn() -> None:
    """Every patch in each role that it can take; where there are few arrangements, all of those.

    Traps: a last row or column that is never reached; a budget one too small, or not spent;
    disjoint blocks where the first ones leave no place for the last.
    """
    rng, generator = random.Random(7), torch.Generator().manual_seed(0)
    exact = limited = 0
    for _ in range(110):
        try:
            sampler = small_sampler(rng)
        except InfeasibleMaskError:
            continue
        expected, found, calls = legal(sampler), set(), 0
        few = sampler.context_length == "pad" and len(expected) < FEW
        summary = set if few else roles
        while summary(found) != summary(expected) and calls < 2000:
            found, calls = found | drawn(sampler, generator), calls + 1
        assert summary(found) == summary(expected), sampler
        exact += few
        limited += roles(expected)[0].bit_count() < math.prod(sampler.grid_size)
    assert exact > 10 and limited > 1, "or the law would say little"
