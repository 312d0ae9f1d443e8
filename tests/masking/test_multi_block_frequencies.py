"""Positions of context and targets: none is left out, no side of the image is preferred."""

import pytest
import torch
from torch import Tensor

from jepakit import MultiBlockMask
from jepakit.masking._engine.context_length import first_of_order
from jepakit.masking._engine.random_numbers import random_order

# Thousands of draws: an order of magnitude faster without the type-checking hook.
pytestmark = pytest.mark.no_hook

# 196 positions and a few maps each: 5 standard errors is a chance of about 1e-4 in all.
NOISE = 5.0
MODES = [
    {"target_size_per": target_size_per, "allow_target_overlap": overlap, **context}
    for target_size_per in ("batch", "sample")
    for context in (
        {"context_length": "fixed"},
        {"context_length": "pad"},
        {"context_length": "trim", "context_subset": "random"},
        {"context_length": "trim", "context_subset": "nearest"},
        {"context_length": 40, "context_subset": "random"},
    )
    for overlap in (True, False)
]
FIXED, FIXED_DISJOINT, PADDED, _, TRIMMED, _, _, _, INT, *_ = MODES


def paper(grid: tuple[int, int] = (14, 14), **mode: object) -> MultiBlockMask:
    # Four disjoint blocks of the paper's size do not always fit; theirs are smaller.
    if not mode.get("allow_target_overlap", True):
        mode |= {"target_scale": (0.08, 0.1)}
    return MultiBlockMask(grid, **mode)


def maps(
    sampler: MultiBlockMask, batch: int, count: int, seed: int, *, per_token: bool = False
) -> dict[str, Tensor]:
    """Mean membership of every position in each role, one row for each of `count` batches.

    With `per_token` every context weighs the same, however long it is.
    """
    generator = torch.Generator().manual_seed(seed)
    rows: dict[str, list[Tensor]] = {"context": [], "targets": []}
    for _ in range(count):
        masks = sampler(batch, generator=generator)
        context = masks.context.to_mask().double()
        if per_token:
            context = context / context.sum(dim=1, keepdim=True)
        rows["context"].append(context.mean(dim=0))
        rows["targets"].append(masks.targets.to_mask().double().mean(dim=(0, 1)))
    return {role: torch.stack(values) for role, values in rows.items()}


def profile(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The map divided by its mean, with its squared standard error (delta method over batches)."""
    level = rows.mean()
    shape = rows.mean(dim=0) / level
    residual = (rows - rows.mean(dim=1, keepdim=True) * shape) / level
    return shape, residual.var(dim=0) / len(rows)


def worst(one: Tensor, other: Tensor) -> float:
    """Largest difference of two maps, each divided by its mean, in standard errors."""
    (a, error_a), (b, error_b) = profile(one), profile(other)
    return float(((a - b).abs() / (error_a + error_b).sqrt()).max())


def lopsidedness(rows: Tensor, grid: tuple[int, int]) -> float:
    """Largest difference between a map and its mirror images, in standard errors."""
    fields = rows.view(-1, *grid)
    found = []
    for axis in (1, 2):
        difference = fields - fields.flip(axis)
        error = (difference.var(dim=0) / len(rows)).sqrt()
        found.append(float((difference.mean(dim=0).abs() / error.clamp_min(1e-12)).max()))
    return max(found)


@pytest.mark.parametrize("mode", MODES)
def test_every_position_is_used_and_no_side_is_preferred(mode):
    """Traps: raster-order prefixes starve the bottom rows; `randint(0, H - h)` the last ones."""
    grid = (14, 12)
    for role, rows in maps(paper(grid, **mode), 16, 190, seed=0).items():
        assert (rows.sum(dim=0) > 0).all(), role
        assert lopsidedness(rows, grid) < NOISE, role


@pytest.mark.parametrize("mode", [FIXED, PADDED, INT, FIXED_DISJOINT])
def test_the_map_does_not_depend_on_the_batch(mode):
    """Trap: the larger the batch, the shorter and the more one-sided the contexts."""
    sampler = paper(**mode)
    alone = maps(sampler, 1, 800, seed=1)
    together = maps(sampler, 32, 150, seed=2)
    for role in alone:
        assert worst(alone[role], together[role]) < NOISE, role


def test_a_batch_of_any_size_keeps_the_floor():
    """Trap, measured with a published sampler: 86 tokens at batch 1, 54 at 128, 41 at 1024."""
    sampler = MultiBlockMask((14, 14), target_size_per="sample", context_length="pad")
    generator = torch.Generator().manual_seed(0)
    means = [
        float(sampler(n, generator=generator).context.counts().float().mean()) for n in (512,) * 4
    ]
    alone = [float(sampler(1, generator=generator).context.counts()) for _ in range(512)]
    assert abs(sum(means) / 4 - sum(alone) / 512) < 5 * torch.tensor(alone).std() / 512**0.5


@pytest.mark.parametrize("overlap", [True, False])
def test_every_target_place_has_one_distribution(overlap):
    """The last target is placed with the least choice; a fixed order would tell which it is."""
    coverage = 0.7 if overlap else 0.45
    sampler = paper(min_context_coverage=coverage, allow_target_overlap=overlap)
    masks = [sampler(64, generator=torch.Generator().manual_seed(seed)) for seed in range(60)]
    fields = torch.cat([m.targets.to_mask() for m in masks]).double()
    areas = fields.sum(dim=-1)
    axis = (torch.arange(14) - 6.5).square()
    radius = (axis[:, None] + axis).flatten()
    alone = fields.sum(dim=1, keepdim=True) == 1
    measures = {
        "squared distance from the centre": (fields * radius).sum(dim=-1) / areas,
        "fraction that no other target shares": (fields * alone).sum(dim=-1) / areas,
    }
    for name, measure in measures.items():
        difference = measure[:, 0] - measure[:, -1]
        error = difference.std() / len(difference) ** 0.5
        assert difference.mean().abs() <= NOISE * error, name


@pytest.mark.parametrize("length", ["trim", 20])
def test_trimming_takes_a_random_subset(length):
    """Trap: cutting a set to its first entries, in raster order."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(2000, 100, generator=generator) < 0.5
    mask[:, :30] = True  # at least 30 members
    uniforms = torch.rand(2000, 100, generator=generator)
    shortest = length if isinstance(length, int) else int(mask.sum(1).min())
    tokens = first_of_order(random_order(uniforms, mask), shortest, (10, 10))
    kept = tokens.to_mask()
    assert not (kept & ~mask).any()
    # Of c members n are kept, each with chance n / c: hypergeometric in each tenth of the ranks.
    count = mask.sum(dim=1, keepdim=True)
    rank = mask.cumsum(dim=1) - 1
    tenth = rank * 10 // count
    for part in range(10):
        members = (mask & (tenth == part)).sum(dim=1).double()
        chance = tokens.shape[1] / count.squeeze(1).double()
        found = (kept & (tenth == part)).sum(dim=1).double()
        variance = members * chance * (1 - chance)  # sampling without replacement has less
        assert (found - members * chance).sum().abs() < NOISE * variance.sum().sqrt()


@pytest.mark.slow
@pytest.mark.parametrize("mode", [FIXED, FIXED_DISJOINT, PADDED, TRIMMED])
def test_frequencies_over_20000_samples(mode):
    """Paper's settings on 14x14: batch 1 and batch 64 draw the same map, each over its mean.

    Trimmed to the shortest of the batch, every context weighs the same; so must those of batch 1.
    """
    sampler = paper(**mode)
    trim = mode["context_length"] == "trim"
    alone = maps(sampler, 1, 20_000, seed=3, per_token=trim)
    together = maps(sampler, 64, 20_000 // 64 + 1, seed=4, per_token=trim)
    for role in alone:
        assert (alone[role].sum(dim=0) > 0).all(), role
        assert (together[role].sum(dim=0) > 0).all(), role
        assert worst(alone[role], together[role]) < NOISE, role
        assert lopsidedness(alone[role], (14, 14)) < NOISE, role
        assert lopsidedness(together[role], (14, 14)) < NOISE, role
