"""Sizes of blocks: two independent random numbers, all sizes of the ranges, every argument used."""

import dataclasses
import math

import pytest
import torch
from tests.masking.guarantee import box_sides
from torch.utils import _pytree as pytree

from jepakit import MultiBlockMask
from jepakit.masking._engine.block_grid import BlockGrid, _of_one_size


def target_sides(sampler: MultiBlockMask, count: int, seed: int = 0) -> torch.Tensor:
    """Height and width of the target of `count` samples, drawn one by one."""
    fresh = dataclasses.replace(sampler, target_size_per="sample", num_targets=1)
    masks = fresh(count, generator=torch.Generator().manual_seed(seed))
    fields = masks.targets[:, 0].to_mask().view(count, *sampler.grid_size)
    return box_sides(fields, 2).double()


def context_areas(scale: tuple[float, float], count: int = 2000) -> torch.Tensor:
    """Areas of context blocks, seen through one single-patch target; one less where it hits."""
    sampler = MultiBlockMask(
        (20, 20),
        num_targets=1,
        target_scale=(1 / 400, 1 / 400),
        target_aspect_ratio=(1.0, 1.0),
        context_scale=scale,
        min_context_coverage=0.0,
        target_size_per="sample",
        context_length="pad",
    )
    masks = sampler(count, generator=torch.Generator().manual_seed(0))
    fields = masks.context.to_mask().view(count, 20, 20)
    return fields.any(1).sum(1) * fields.any(2).sum(1)


def test_scale_and_aspect_ratio_are_independent():
    """Trap: one random number drives both, so they are fully correlated."""
    sampler = MultiBlockMask((48, 48), target_scale=(0.02, 0.2), target_aspect_ratio=(1 / 3, 3.0))
    h, w = target_sides(sampler, 4000).unbind(1)
    scale, log_aspect = h * w / 48**2, (h / w).log()
    pair = torch.stack([scale, log_aspect])
    assert abs(torch.corrcoef(pair)[0, 1]) < 5 / math.sqrt(4000)
    # Also in every quarter of the scales: the spread of aspect ratios is the whole range.
    for part in log_aspect[scale.argsort()].chunk(4):
        assert part.mean().abs() < 5 * part.std() / math.sqrt(1000)
        assert part.min() < -0.9 * math.log(3) and part.max() > 0.9 * math.log(3)


def test_scale_is_uniform_and_aspect_ratio_log_uniform():
    sampler = MultiBlockMask((48, 48), target_scale=(0.05, 0.2), target_aspect_ratio=(0.5, 2.0))
    h, w = target_sides(sampler, 4000).unbind(1)
    for value, (low, high) in (
        (h * w / 48**2, (0.05, 0.2)),
        ((h / w).log(), (math.log(0.5), math.log(2.0))),
    ):
        sorted_unit = ((value - low) / (high - low)).sort().values
        expected = (torch.arange(4000) + 0.5) / 4000
        # Kolmogorov-Smirnov at about 1e-6, and room for the rounding to whole patches.
        assert (sorted_unit - expected).abs().max() < 2.7 / math.sqrt(4000) + 0.02


def test_many_sizes_occur_each_as_often_as_it_should():
    """Trap: few block sizes ever occur. Frequencies are those of a dense grid over the ranges."""
    sampler = MultiBlockMask((14, 14))
    points = (torch.arange(500).double() + 0.5) / 500
    area = 196 * (0.15 + 0.05 * points)[:, None]
    aspect = torch.exp(math.log(0.75) + math.log(2.0) * points)
    h = ((area * aspect).sqrt() + 0.5).floor().clamp(1, 14)
    w = ((area / aspect).sqrt() + 0.5).floor().clamp(1, 14)
    keys, counts = (h * 100 + w).flatten().unique(return_counts=True)
    n = 5000
    sides = target_sides(sampler, n)
    drawn = sides[:, 0] * 100 + sides[:, 1]
    assert len(keys) == 10
    for key, chance in zip(keys, counts / counts.sum(), strict=True):
        found = (drawn == key).double().mean()
        assert (found - chance).abs() < 5 * (chance * (1 - chance) / n).sqrt() + 1e-3
    assert set(drawn.tolist()) <= set(keys.tolist())


def test_batch_mode_draws_a_size_for_every_batch():
    sampler = MultiBlockMask((14, 14), context_length="pad")
    generator = torch.Generator().manual_seed(0)
    lengths = {sampler(2, generator=generator).targets.shape[2] for _ in range(60)}
    assert lengths == {30, 35, 36, 40, 42}


def test_context_scale_has_an_effect():
    """Trap: `while h >= H: h -= 1` makes every context block the same square in one place."""
    small, large = context_areas((0.3, 0.3)), context_areas((0.9, 0.9))
    assert small.unique().tolist() == [11 * 11] and large.unique().tolist() == [19 * 19]
    areas = context_areas((0.3, 1.0))
    assert len(areas.unique()) == 10  # sides 11 to 20
    mean = (areas / 400).double().mean()
    assert abs(mean - 0.65) < 5 * (areas / 400).std() / math.sqrt(2000) + 0.01


def test_context_scales_are_equally_likely():
    """Each side occurs as often as its part of the range; a raised low end leaves the rest alike.

    Trap: all sizes equally likely, where a side of 11 has a third of the scales of a side of 20.
    """
    count = 20_000
    for scale, fewest in (((0.3, 1.0), 11), ((0.5, 0.9), 14)):
        drawn, counts = context_areas(scale, count).sqrt().long().unique(return_counts=True)
        points = scale[0] + (scale[1] - scale[0]) * (torch.arange(100_000).double() + 0.5) / 1e5
        sides, parts = (20 * points.sqrt() + 0.5).floor().long().unique(return_counts=True)
        assert torch.equal(drawn, sides) and int(sides[0]) == fewest
        expected = parts.double() / 1e5 * count
        # Chi-squared over its degrees of freedom; 3.5 is beyond 1e-4 for 6 or more of them.
        assert ((counts - expected) ** 2 / expected).sum() / (len(sides) - 1) < 3.5


def test_a_context_block_as_large_as_the_grid_is_all_of_it():
    """Trap: the same loop again, which can never take a whole grid."""
    assert context_areas((1.0, 1.0), count=50).unique().tolist() == [400]


def test_a_low_context_scale_is_raised_to_what_is_promised():
    sampler = MultiBlockMask(
        (14, 14),
        context_scale=(0.1, 1.0),
        min_context_coverage=0.5,
        target_size_per="sample",
        context_length="pad",
    )
    masks = sampler(500, generator=torch.Generator().manual_seed(0))
    union = masks.context.to_mask() | masks.targets.to_mask().any(1)
    assert (union.sum(1) >= 98).all()
    assert len(masks.context.counts().unique()) > 10


BASE = {"grid_size": (8, 9), "min_context_coverage": 0.25}
CHANGES = {
    "grid_size": (9, 8),
    "num_targets": 3,
    "target_scale": (0.1, 0.15),
    "target_aspect_ratio": (0.3, 0.5),
    "context_scale": (0.6, 0.65),
    "min_context_coverage": 0.5,
    "allow_target_overlap": False,
    "target_size_per": "sample",
    "context_length": "trim",
    "context_subset": "random",
    "temporal_scale": (0.5, 0.5),
    "context_frames_ratio": 0.5,
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_argument_matters(name):
    """Law 12, by the masks and not by the representation."""
    base, change = dict(BASE), {name: CHANGES[name]}
    if name in ("temporal_scale", "context_frames_ratio"):
        base["grid_size"] = (4, 8, 9)
    if name == "allow_target_overlap":
        base |= {"target_scale": (0.1, 0.12), "target_aspect_ratio": (0.9, 1.1)}

    def leaves(arguments: dict) -> list[torch.Tensor]:
        masks = MultiBlockMask(**arguments)(32, generator=torch.Generator().manual_seed(0))
        return [masks.context.to_mask(), masks.targets.to_mask()]

    one, other = leaves(base), leaves(base | change)
    assert not all(map(torch.equal, one, other))
    assert all(map(torch.equal, one, leaves(base)))


def test_no_argument_is_left_out():
    names = {field.name for field in dataclasses.fields(MultiBlockMask)} - {"_"}
    assert set(CHANGES) == names


def test_int_and_trim_lengths_differ():
    for length in (5, 10):
        masks = MultiBlockMask((8, 8), context_length=length)(3)
        assert masks.context.shape == (3, length) and not masks.context.padded


def test_masks_are_leaves_of_int64_and_bool():
    leaves = pytree.tree_leaves(MultiBlockMask((8, 8))(2))
    assert [leaf.dtype for leaf in leaves] == [torch.int64, torch.bool] * 2


def test_blocks_of_one_volume_need_no_padding():
    blocks = BlockGrid((4, 4), torch.tensor([[2, 1], [1, 2]]))
    assert not blocks.token_sets(torch.zeros(2, 1, dtype=torch.int64)).padded


def test_what_is_kept_between_calls_does_not_leave_the_sampler():
    """Trap: a size drawn first in inference mode, whose tensors no backward pass can save."""
    _of_one_size.cache_clear()
    sampler = MultiBlockMask((6, 6), num_targets=2, target_scale=(0.1, 0.1))
    with torch.inference_mode():
        sampler(2, generator=torch.Generator().manual_seed(0))
    masks = sampler(2, generator=torch.Generator().manual_seed(0))
    features = torch.ones(masks.targets.shape, requires_grad=True)
    torch.where(masks.targets.valid, features, 0).sum().backward()
    assert features.grad.sum() == masks.targets.valid.sum()
