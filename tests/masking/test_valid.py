"""Masks where data fills a part of the grid: padded clips, a body in a scan, a missing modality."""

import math
import random
from typing import Any

import pytest
import torch
from tests.masking.guarantee import box_sides
from tests.masking.promises import assert_promise
from tests.masking.random_samplers import KINDS, LARGEST, SMALL, Grid, random_sampler
from torch import Tensor

from jepakit import InfeasibleMaskError, Masks, MultiBlockMask, RandomMask, TokenSet
from jepakit.masking import (
    BlockMask,
    CausalMask,
    ComplementMask,
    InverseBlockMask,
    MultiContextMask,
    NestedMask,
    ReferenceMultiBlockMask,
    TubeMask,
    UnionMask,
    base,
)
from jepakit.masking._engine.growth import _draw_blocks


def random_box(rng: random.Random, grid: Grid) -> Tensor:
    """A box on the grid, `[*grid]`; half of them begin at the first cell, as padded data does."""
    mask = torch.zeros(grid, dtype=torch.bool)
    spans = []
    for side in grid:
        extent = rng.choice([side, rng.randint(1, side)])
        first = rng.choice([0, rng.randint(0, side - extent)])
        spans.append(slice(first, first + extent))
    mask[tuple(spans)] = True
    return mask


def random_valid(rng: random.Random, grid: Grid, batch: int, *, tube: bool) -> Tensor:
    """Boxes, boxes with holes, scattered positions and whole grids; `[batch, N]`."""
    masks = []
    for _ in range(batch):
        mask, kind = random_box(rng, grid), rng.randint(0, 3)
        generator = torch.Generator().manual_seed(rng.getrandbits(31))
        shape = (1, *grid[1:]) if tube else grid  # a tube is the same in all frames
        noise = torch.rand(shape, generator=generator)
        if kind == 1:
            mask &= noise < 0.8
        if kind == 2 and not tube:
            mask = noise < rng.random()
        if kind == 3:
            mask = torch.ones(grid, dtype=torch.bool)
        masks.append(mask.flatten())
    return torch.stack(masks)


def promised(sampler: Any, count: int) -> int:
    """Context tokens of a sample with `count` valid positions; an own computation."""
    if isinstance(sampler, MultiBlockMask):
        tokens = max(1, math.ceil(sampler.min_context_coverage * count - 1e-9))
        length = sampler.context_length
        return min(tokens, length) if isinstance(length, int) else tokens
    if isinstance(sampler, RandomMask):
        rest = count - min(max(1, math.floor(sampler.target_ratio * count + 0.5)), count - 1)
        return rest if sampler.context_length == "pad" else min(rest, sampler.context_length)
    if isinstance(sampler, BlockMask):
        return count - min(max(1, math.floor(sampler.target_ratio * count + 0.5)), count - 1)
    if isinstance(sampler, InverseBlockMask):
        return min(max(1, math.floor(sampler.context_ratio * count + 0.5)), count - 1)
    if isinstance(sampler, (ComplementMask, UnionMask)):
        return promised(sampler.sampler, count)
    return 1


# Samplers whose promise may be exceeded, or is computed for multi-block masks only.
UNKNOWN_LENGTH = (CausalMask, TubeMask, NestedMask, ComplementMask, UnionMask)


def assert_inside(sampler: Any, masks: Any, valid: Tensor) -> None:
    """Law 1, sample by sample, for what is there."""
    if isinstance(masks, list):
        for member, one in zip(sampler.samplers, masks, strict=True):
            assert_inside(member, one, valid)
        return
    for tokens in (masks.context, masks.targets):
        TokenSet(tokens.idx, tokens.valid, tokens.grid_size, tokens.padded)  # values are checked
        assert (tokens.counts() >= 1).all()
    context, targets = masks.context.to_mask(), masks.targets.to_mask()
    assert not (context & ~valid).any() and not (targets & ~valid[:, None]).any()
    assert not (context[:, None] & targets).any()
    counts, found = valid.sum(1).tolist(), masks.context.counts().tolist()
    floor = [promised(sampler, count) for count in counts]
    assert all(n >= least for n, least in zip(found, floor, strict=True))
    exact = not isinstance(sampler, MultiBlockMask) or sampler.context_length not in ("pad", "trim")
    if exact and not isinstance(sampler, UNKNOWN_LENGTH):
        assert found == floor
    if isinstance(sampler, MultiBlockMask):
        if sampler.context_length == "trim":
            shortest = min(found)
            assert all(n == max(shortest, own) for n, own in zip(found, floor, strict=True))
        if not sampler.allow_target_overlap:
            assert (targets.sum(1) <= 1).all()
        if len(sampler.grid_size) == 3:
            frames = valid.view(len(valid), sampler.grid_size[0], -1).any(2)
            seen = context.view(*frames.shape, -1).any(2)
            for own, of_context in zip(frames, seen, strict=True):
                first, last = own.nonzero()[[0, -1], 0].tolist()
                extent = last + 1 - first
                most = max(1, math.floor(sampler.context_frames_ratio * extent + 1e-9))
                assert not of_context[first + most :].any()


def fuzz(kind: str, largest: dict[int, Grid], count: int, seed: int) -> tuple[int, int]:
    """Numbers of configurations that gave masks, and of those refused, each for a true reason."""
    rng = random.Random(seed)
    drawn = refused = 0
    while drawn + refused < count:
        sampler: Any = random_sampler(kind, rng, largest)
        batch = rng.choice([1, 2, 4])
        valid = random_valid(rng, sampler.grid_size, batch, tube=isinstance(sampler, TubeMask))
        table = torch.rand(batch, sampler.num_uniforms, generator=torch.Generator().manual_seed(0))
        before = valid.clone()
        try:
            masks = sampler.from_uniforms(table, valid=valid)
        except InfeasibleMaskError as error:
            sample = int(str(error).split("valid[")[1].split("]")[0])
            # Alone it is refused too, and those before it are not.
            with pytest.raises(InfeasibleMaskError, match=r"valid\[0\]"):
                sampler.from_uniforms(table[:1], valid=valid[sample : sample + 1])
            if sample > 0 and kind not in ("MultiContextMask", "TubeMask"):  # two rules, one by one
                sampler.from_uniforms(table[:sample], valid=valid[:sample])
            refused += 1
            continue
        drawn += 1
        assert torch.equal(valid, before)
        assert_inside(sampler, masks, valid)
        if sampler.per_sample:
            assert_alone(sampler, masks, table, valid)
    return drawn, refused


def assert_alone(sampler: Any, masks: Any, table: Tensor, valid: Tensor) -> None:
    """A sample's masks do not depend on its batch-mates, whatever these hold."""
    last = sampler.from_uniforms(table[-1:], valid=valid[-1:])
    pairs = zip(last, masks, strict=True) if isinstance(masks, list) else [(last, masks)]
    for one, of_batch in pairs:
        assert torch.equal(one.context.to_mask()[0], of_batch.context.to_mask()[-1])
        assert torch.equal(one.targets.to_mask()[0], of_batch.targets.to_mask()[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_sets_lie_inside_and_keep_the_promise(kind):
    """Traps: padded frames as context; the whole grid's floor for a short clip; empty targets."""
    drawn, _ = fuzz(kind, SMALL, 60, seed=1)
    assert drawn > 20


@pytest.mark.slow
@pytest.mark.no_hook
@pytest.mark.parametrize("kind", KINDS)
def test_sets_lie_inside_and_keep_the_promise_5000_times(kind):
    drawn, refused = fuzz(kind, SMALL, 4500, seed=2)
    assert drawn > 1500 and refused > 50
    drawn, _ = fuzz(kind, LARGEST, 500, seed=3)
    assert drawn > 200


@pytest.mark.parametrize("kind", KINDS)
def test_all_valid_keeps_the_promise_of_the_whole_grid(kind):
    """Except for disjoint targets, which are clipped where they find no place as a whole."""
    rng = random.Random(0)
    for _ in range(15):
        sampler: Any = random_sampler(kind, rng, SMALL)
        if "allow_target_overlap=False" in repr(sampler):
            continue
        valid = torch.ones(3, math.prod(sampler.grid_size), dtype=torch.bool)
        masks = sampler(3, valid=valid, generator=torch.Generator().manual_seed(0))
        assert_inside(sampler, masks, valid)


def boxes(grid: Grid, extents: list[Grid], first: Grid | None = None) -> Tensor:
    masks = torch.zeros(len(extents), *grid, dtype=torch.bool)
    for mask, extent in zip(masks, extents, strict=True):
        start = first or (0,) * len(grid)
        mask[tuple(slice(f, f + e) for f, e in zip(start, extent, strict=True))] = True
    return masks.flatten(1)


@pytest.mark.parametrize("size_per", ["batch", "sample"])
def test_in_a_box_targets_are_those_of_a_grid_of_that_size(size_per):
    """Scale is a share of what is there: half the clip, half the target."""
    grid, extents = (8, 14, 14), [(8, 14, 14), (4, 14, 14), (8, 7, 10)]
    sampler = MultiBlockMask(
        grid, temporal_scale=(0.5, 0.5), target_size_per=size_per, context_length="pad"
    )
    areas: list[list[float]] = [[] for _ in extents]
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        masks = sampler(3, valid=boxes(grid, extents), generator=generator)
        for sample, extent in enumerate(extents):
            sets = masks.targets.to_mask()[sample].view(1, 4, *grid)
            sides = box_sides(sets, 3)[0]
            assert torch.equal(sides.prod(1), masks.targets.counts()[sample])  # whole rectangles
            assert set(sides[:, 0].tolist()) == {math.floor(0.5 * extent[0] + 0.5)}
            areas[sample] += (sides[:, 1:].prod(1) / math.prod(extent[1:])).tolist()
    for shares in areas:
        assert 0.14 < sum(shares) / len(shares) < 0.22


@pytest.mark.parametrize("valid_first", [(0, 0), (3, 5)])
def test_every_place_of_a_box_is_used_as_on_a_grid_of_its_size(valid_first):
    """Trap: blocks that never reach the border of what is there, or prefer it."""
    grid, extent = (12, 13), (7, 6)
    valid = boxes(grid, [extent], valid_first).expand(4000, -1)
    arguments: Any = {"num_targets": 2, "target_size_per": "sample"}
    inside = MultiBlockMask(grid, **arguments)(
        4000, valid=valid, generator=torch.Generator().manual_seed(0)
    )
    alone = MultiBlockMask(extent, **arguments)(4000, generator=torch.Generator().manual_seed(1))
    rows, columns = (slice(f, f + e) for f, e in zip(valid_first, extent, strict=True))
    for one, other in ((inside.context, alone.context), (inside.targets, alone.targets)):
        found = one.to_mask().view(-1, *grid)[:, rows, columns].double().mean(0)
        expected = other.to_mask().view(-1, *extent).double().mean(0)
        assert (found - expected).abs().max() < 5 * math.sqrt(2 * 0.25 / 4000)


@pytest.mark.parametrize(
    ("grid", "arguments"),
    [
        ((9, 7), {}),
        ((9, 7), {"context_subset": "random", "context_length": "fixed"}),
        ((9, 7), {"context_length": "fixed"}),
        ((20,), {}),
        ((6, 4, 5), {"context_frames_ratio": 0.5, "min_context_coverage": 0.05}),
        ((6, 4, 5), {"temporal_scale": (0.2, 0.8)}),
        (  # a target takes all of the budget
            (4, 4),
            {
                "context_scale": (1.0, 1.0),
                "target_scale": (0.25, 0.25),
                "target_aspect_ratio": (1.0, 1.0),
                "min_context_coverage": 0.75,
            },
        ),
        (
            (6, 8, 8),
            {
                "context_frames_ratio": 0.34,
                "context_scale": (0.5, 1.0),
                "target_scale": (0.3, 0.3),
                "min_context_coverage": 0.01,
            },
        ),
    ],
)
def test_all_valid_is_distributed_as_without_valid(grid, arguments):
    """Trap: a context block that slides out of the frames it may have, and loses a part of them."""
    arguments = {"num_targets": 2, "target_size_per": "sample", "context_length": "pad"} | arguments
    sampler, n = MultiBlockMask(grid, **arguments), 4000
    valid = torch.ones(n, math.prod(grid), dtype=torch.bool)
    one = sampler(n, valid=valid, generator=torch.Generator().manual_seed(0))
    other = sampler(n, generator=torch.Generator().manual_seed(1))
    for a, b in ((one.context, other.context), (one.targets[:, 0], other.targets[:, 0])):
        difference = a.to_mask().double().mean(0) - b.to_mask().double().mean(0)
        assert difference.abs().max() < 5 * math.sqrt(2 * 0.25 / n)
        counts = [tokens.counts().double() for tokens in (a, b)]
        spread = math.sqrt(sum(float(c.var()) for c in counts) / n)
        assert abs(counts[0].mean() - counts[1].mean()) <= 5 * spread


def test_small_context_scales_are_raised_in_a_sample():
    """Trap: all of the sample as context block wherever the drawn block is too small."""
    sampler = MultiBlockMask(
        (12, 12), context_scale=(0.1, 0.6), num_targets=1, context_length="pad"
    )
    valid = boxes((12, 12), [(12, 12), (9, 8)]).repeat(100, 1)
    masks = sampler(200, valid=valid, generator=torch.Generator().manual_seed(0))
    counts = masks.context.counts().view(100, 2)
    # Blocks of 9 x 9 and 7 x 6 are the largest that 0.6 of the area rounds to.
    assert (counts[:, 0] <= 81).all() and (counts[:, 1] <= 42).all()


def test_fixed_contexts_have_the_length_of_the_whole_grid():
    """One shape for all batches: the promise of the whole grid, padded where less is there."""
    sampler, grid = MultiBlockMask((8, 6, 6)), (8, 6, 6)
    masks = sampler(3, valid=boxes(grid, [(8, 6, 6), (2, 6, 6), (5, 6, 6)]))
    assert masks.context.shape == (3, sampler.min_context_tokens) == (3, 72)
    assert masks.context.counts().tolist() == [72, 18, 45] and masks.context.padded
    longest = sampler(64).targets.shape[2]
    assert masks.targets.shape[:2] == (3, 4) and masks.targets.shape[2] >= longest


def test_what_fits_no_place_whole_is_clipped():
    """A diagonal holds no rectangle; targets are what blocks cover of it, and never empty.

    Trap: clipped or single positions that stay in the context, or lie outside.
    """
    valid = torch.eye(8, dtype=torch.bool).flatten().expand(64, -1)
    sampler = MultiBlockMask((8, 8), target_scale=(0.5, 0.5))
    masks = sampler(64, valid=valid)
    assert_inside(sampler, masks, valid)
    assert (masks.context.counts() == 2).all()


def test_contexts_lie_in_the_first_frames_of_a_sample():
    """Trap: frames counted on the grid, or from its first one; others where no block is enough."""
    grid = (8, 6, 6)
    arguments: Any = {"temporal_scale": (0.5, 0.5), "min_context_coverage": 0.2}
    sampler = MultiBlockMask(
        grid, context_frames_ratio=0.5, context_scale=(0.3, 1.0), context_length="pad", **arguments
    )
    holes = torch.rand(32, 8 * 36, generator=torch.Generator().manual_seed(0)) < 0.9
    for first, frames in ((0, 8), (2, 6), (4, 4)):
        valid = boxes(grid, [(frames, 6, 6)], (first, 0, 0)) & holes
        masks = sampler(32, valid=valid, generator=torch.Generator().manual_seed(1))
        assert_inside(sampler, masks, valid)
        seen = masks.context.to_mask().view(32, 8, -1).any(2)
        assert seen[:, first : first + frames // 2].all()


@pytest.mark.parametrize(
    ("columns", "arguments"),
    [
        (3, {"target_scale": (0.25, 0.25), "min_context_coverage": 0.7}),
        (
            4,
            {
                "target_scale": (0.2, 0.2),
                "min_context_coverage": 0.75,
                "allow_target_overlap": False,
            },
        ),
    ],
)
def test_single_positions_where_blocks_take_too_much(columns, arguments):
    """A block covers a whole column or nothing, and the budget is one position.

    Traps: a single position that stays in the context, takes more than the budget or that of
    another target; a first target that leaves nothing for the second.
    """
    sampler = MultiBlockMask(
        (2, 8),
        num_targets=2,
        target_aspect_ratio=(1.9, 2.0),
        context_scale=(1.0, 1.0),
        context_length="pad",
        **arguments,
    )
    valid = boxes((2, 8), [(2, columns)]).expand(256, -1)
    masks = sampler(256, valid=valid)
    assert_inside(sampler, masks, valid)
    assert (masks.targets.counts() == 1).all()


def test_disjoint_targets_share_what_little_there_is():
    """Traps: a target that leaves nothing for the next ones; single positions that are taken."""
    valid = torch.eye(8, dtype=torch.bool).flatten().expand(256, -1)
    arguments: Any = {"allow_target_overlap": False, "target_scale": (0.1, 0.1)}
    sampler = MultiBlockMask((8, 8), num_targets=3, min_context_coverage=0.3, **arguments)
    assert_inside(sampler, sampler(256, valid=valid), valid)
    five = valid.clone()
    five[:, 45:] = False  # five positions left, of which two are the context's
    sampler = MultiBlockMask((8, 8), num_targets=3, min_context_coverage=0.4, **arguments)
    assert_inside(sampler, sampler(256, valid=five), five)


def test_scales_count_positions_and_not_the_bounding_box():
    """Trap: one stray position far off makes all blocks larger."""
    valid = torch.zeros(32, 16, 16, dtype=torch.bool)
    valid[:, :, :8] = valid[:, 15, 15] = True
    valid = valid.flatten(1)
    sampler = MultiBlockMask((16, 16), target_scale=(0.2, 0.2), target_aspect_ratio=(1.0, 1.0))
    assert (sampler(32, valid=valid).targets.counts() == 25).all()  # of 129, not of 256
    numbers = torch.rand(32, 8, generator=torch.Generator().manual_seed(0))
    blocks = _draw_blocks((16, 16), (0.25, 0.25), (0.5, 2.0), numbers, valid)
    assert (blocks[..., 0] == 32).all()
    assert valid.gather(1, blocks[..., 1].long()).all()  # a block grows around what is there


@pytest.mark.parametrize("whole_grid", [True, False])
def test_all_targets_of_a_sample_are_alike(whole_grid):
    """Trap: the last target, which had the fewest places to choose from, is always the last."""
    sampler = MultiBlockMask(
        (4, 4),
        num_targets=3,
        target_scale=(0.25, 0.25),
        target_aspect_ratio=(1.0, 1.0),
        context_scale=(1.0, 1.0),
        min_context_coverage=0.5,
    )
    valid = None if whole_grid else torch.ones(4000, 16, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    targets = sampler(4000, valid=valid, generator=generator).targets.to_mask()
    own = (targets & (targets.sum(1, keepdim=True) == 1)).sum(2).double()  # cells of no other one
    means, spread = own.mean(0), math.sqrt(2 * float(own.var()) / 4000)
    assert float(means.max() - means.min()) < 5 * spread


def test_trimmed_contexts_are_as_long_as_the_shortest():
    """Trap: only what is promised stays, where every sample has more."""
    sampler = MultiBlockMask((8, 8), context_length="trim", num_targets=1)
    valid = torch.ones(4, 64, dtype=torch.bool)
    counts = sampler(4, valid=valid, generator=torch.Generator().manual_seed(0)).context.counts()
    assert (counts == counts[0]).all() and counts[0] > 2 * sampler.min_context_tokens


def test_a_sample_without_data_in_its_first_frames_is_refused():
    valid = torch.ones(2, 4, 9, dtype=torch.bool)
    valid[1, 0, 1:] = False
    sampler = MultiBlockMask(
        (4, 3, 3), context_frames_ratio=0.25, min_context_coverage=0.05, num_targets=1
    )
    with pytest.raises(InfeasibleMaskError, match=r"valid\[1\]: 1 valid positions in the frames"):
        sampler(2, valid=valid.flatten(1))


def test_a_tube_of_a_short_clip_ends_with_it():
    sampler = TubeMask(6, RandomMask((4, 4), target_ratio=0.5))
    masks = sampler(2, valid=boxes((6, 4, 4), [(6, 4, 4), (2, 4, 4)]))
    assert masks.context.counts().tolist() == [48, 16]
    frames = masks.targets.to_mask()[1, 0].view(6, 16)
    assert torch.equal(frames[0], frames[1]) and not frames[2:].any()
    uneven = boxes((6, 4, 4), [(6, 4, 4), (2, 4, 4)])
    uneven[1, 16] = False
    with pytest.raises(InfeasibleMaskError, match=r"valid\[1\]: must be the same in all frames"):
        sampler(2, valid=uneven)


def test_steps_without_data_are_no_past_and_no_future():
    """A recording with gaps: the next step is the next one that was recorded."""
    valid = torch.zeros(1, 10, dtype=torch.bool)
    valid[0, [1, 2, 5, 9]] = True
    sampler = CausalMask((10,), num_context_steps=(2, 2), num_target_steps=1)
    masks = sampler(1, valid=valid)
    assert masks.context.to_mask().nonzero()[:, 1].tolist() == [1, 2]
    assert masks.targets.to_mask().nonzero()[:, 2].tolist() == [5]
    rest = CausalMask((10,), num_context_steps=(2, 2))(1, valid=valid)
    assert rest.targets.to_mask().nonzero()[:, 2].tolist() == [5, 9]


@pytest.mark.parametrize(
    ("sampler", "counts", "text"),
    [
        (MultiBlockMask((4, 4)), [16, 1, 0], "valid[1]: 1 valid positions are fewer than the 1 "),
        (
            MultiBlockMask((4, 4), allow_target_overlap=False, target_scale=(0.05, 0.1)),
            [16, 4],
            "valid[1]: 4 valid positions are fewer than the 1 context tokens of "
            "min_context_coverage=0.25 and 4 for disjoint targets",
        ),
        (RandomMask((4, 4)), [2, 1], "valid[1]: 1 valid position(s): must be at least 2"),
        (BlockMask((4, 4)), [0], "valid[0]: 0 valid position(s): must be at least 2"),
        (CausalMask((4, 4)), [16, 3], "valid[1]: 1 step(s) with valid positions are fewer than"),
        (ComplementMask(RandomMask((4, 4))), [1], "valid[0]: 1 valid position(s)"),
        (NestedMask((4, 4), RandomMask((2, 2))), [16, 2], "valid[1]: 1 valid position(s)"),
        (MultiContextMask((RandomMask((4, 4)),)), [1], "valid[0]: 1 valid position(s)"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str | list) else "",
)
def test_samples_that_hold_too_little_are_named(sampler, counts, text):
    valid = torch.arange(16) < torch.tensor(counts)[:, None]
    with pytest.raises(InfeasibleMaskError) as error:
        sampler(len(counts), valid=valid)
    assert text in str(error.value)


@pytest.mark.no_hook
def test_arguments():
    sampler = MultiBlockMask((4, 4))
    with pytest.raises(ValueError, match=r"valid \(2, 4, 4\): must be flat over the grid"):
        sampler(2, valid=torch.ones(2, 4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"valid \(3, 16\): must be flat .* \[2, 16\]"):
        sampler(2, valid=torch.ones(3, 16, dtype=torch.bool))
    with pytest.raises(ValueError, match="device='cpu': must be that of valid, meta"):
        sampler(2, valid=torch.ones(2, 16, dtype=torch.bool, device="meta"), device="cpu")
    with pytest.raises(ValueError, match="the published sampler draws on the whole grid"):
        ReferenceMultiBlockMask((9, 9))(1, valid=torch.ones(1, 81, dtype=torch.bool))


@pytest.mark.no_hook
def test_a_mask_of_numbers_is_refused():
    with pytest.raises(TypeError, match="valid: must be"):
        MultiBlockMask((4, 4))(2, valid=torch.ones(2, 16))


def test_masks_lie_where_valid_lies():
    masks = MultiBlockMask((4, 4))(2, valid=torch.ones(2, 16, dtype=torch.bool), device="meta")
    assert isinstance(masks, Masks) and masks.context.device.type == "meta"


def test_promise_holds_for_whole_grids():
    """The checks of this file are no weaker than those for whole grids where both apply."""
    sampler = MultiBlockMask((9, 9), target_size_per="sample")
    masks = sampler(8, valid=torch.ones(8, 81, dtype=torch.bool))
    context = TokenSet.from_mask(masks.context.to_mask(), (9, 9))
    assert_promise(sampler, Masks(context, masks.targets), 8)


def test_copies_to_a_device_know_their_padding(monkeypatch):
    """Trap: a padded set whose copy calls all of its entries valid."""
    valid = boxes((4, 4), [(4, 4), (2, 4)])
    masks = RandomMask((4, 4))(2, valid=valid)
    monkeypatch.setattr(base, "copy_to", lambda tensor, device: tensor)
    copy = base.copy_masks(masks, "meta")
    assert torch.equal(copy.context.valid, masks.context.valid)
    assert torch.equal(copy.targets.valid, masks.targets.valid)


def test_numbers_lie_on_the_cpu_whatever_the_default_device_is():
    with torch.device("meta"):
        masks = MultiBlockMask((4, 4))(2)
    assert masks.context.device.type == "cpu"
