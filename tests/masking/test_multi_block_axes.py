"""`MultiBlockMask` along one axis and through time: the same promises on `(L,)` and `(T, H, W)`."""

import random
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.masking.guarantee import assert_guarantee, box_sides
from tests.masking.random_samplers import multiblock_arguments
from tests.masking.test_multi_block_guarantee import suggestions

from jepakit import InfeasibleMaskError, MultiBlockMask, TokenSet


def random_case(rng: random.Random, max_sides: tuple[int, ...]) -> tuple[tuple[int, ...], dict]:
    grid = tuple(rng.randint(2, side) for side in max_sides)
    return grid, multiblock_arguments(rng, grid)


@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**31),
    max_sides=st.sampled_from([(40,), (6, 8, 8), (4, 12, 3)]),
    batch=st.sampled_from([1, 2, 5]),
)
def test_guarantee(seed, max_sides, batch):
    """Law 1. Traps: V-JEPA samplers cut whole frames away; a context block that is always the same.

    Where the arguments are infeasible, every change that the text offers is followed.
    """
    rng = random.Random(seed)
    grid, arguments = random_case(rng, max_sides)
    generator = torch.Generator().manual_seed(seed)
    try:
        samplers = [MultiBlockMask(grid, **arguments)]
    except InfeasibleMaskError as error:
        samplers = [
            MultiBlockMask(grid, **arguments | eval(f"dict({change})"))
            for change in suggestions(error)
        ]
    for sampler in samplers:
        assert_guarantee(sampler, sampler(batch, generator=generator), batch)


@pytest.mark.slow
@pytest.mark.no_hook
@pytest.mark.parametrize("max_sides", [(1024,), (16, 24, 24)])
def test_guarantee_over_5000_configurations(max_sides):
    rng = random.Random(0)
    done = 0
    while done < 5_000:
        grid, arguments = random_case(rng, max_sides)
        try:
            sampler = MultiBlockMask(grid, **arguments)
        except InfeasibleMaskError:
            continue
        batch = rng.randint(1, 4)
        masks = sampler(batch, generator=torch.Generator().manual_seed(rng.getrandbits(32)))
        assert_guarantee(sampler, masks, batch)
        done += 1


@given(seed=st.integers(0, 2**31))
def test_a_perfect_packing_in_space_and_time_is_found(seed):
    sampler = MultiBlockMask(
        (4, 4, 4),
        num_targets=7,
        target_scale=(0.25, 0.25),
        target_aspect_ratio=(1.0, 1.0),
        temporal_scale=(0.5, 0.5),
        context_scale=(1.0, 1.0),
        min_context_coverage=0.0,
        allow_target_overlap=False,
        target_size_per="sample",
        context_length="pad",
    )
    masks = sampler(8, generator=torch.Generator().manual_seed(seed))
    assert_guarantee(sampler, masks, 8)
    assert (masks.context.counts() == 8).all()


def test_the_long_and_the_short_sets_of_video():
    """V-JEPA's two sets: a few large blocks and many small ones, both through all of time."""
    for count, scale, sides in ((8, 0.15, range(4, 7)), (2, 0.7, range(10, 15))):
        sampler = MultiBlockMask(
            (8, 14, 14),
            num_targets=count,
            target_scale=(scale, scale),
            min_context_coverage=0.05,
            context_scale=(1.0, 1.0),
            context_length="pad",
        )
        masks = sampler(16, generator=torch.Generator().manual_seed(0))
        assert_guarantee(sampler, masks, 16)
        size = box_sides(masks.targets.to_mask().view(16, count, 8, 14, 14), 3)[0, 0]
        assert size[0] == 8 and all(int(side) in sides for side in size[1:])
        # So the context is the same in every frame.
        context = masks.context.to_mask().view(16, 8, 196)
        assert torch.equal(context, context[:, :1].expand_as(context))


def test_time_positions_are_used_alike():
    """Trap: a prefix of the raster order keeps the first frames and loses the last."""
    sampler = MultiBlockMask(
        (6, 8, 8), temporal_scale=(0.3, 0.5), context_length="trim", target_size_per="sample"
    )
    masks = sampler(4000, generator=torch.Generator().manual_seed(0))
    for rows in (masks.context.to_mask(), masks.targets.to_mask().any(dim=1)):
        frames = rows.double().view(-1, 6, 64).mean(dim=2)
        difference = frames - frames.flip(1)
        error = difference.std(dim=0) / len(frames) ** 0.5
        assert (difference.mean(dim=0).abs() <= 5 * error.clamp_min(1e-12)).all()
        assert (rows.any(dim=0)).all()


def test_context_keeps_to_the_first_frames():
    sampler = MultiBlockMask(
        (8, 6, 6), temporal_scale=(0.5, 1.0), context_frames_ratio=0.5, min_context_coverage=0.1
    )
    masks = sampler(32, generator=torch.Generator().manual_seed(0))
    frames = masks.context.to_mask().view(32, 8, 36).any(dim=2)
    assert frames[:, :4].any(dim=0).all() and not frames[:, 4:].any()
    assert masks.targets.to_mask().view(32, 4, 8, 36).any(dim=(0, 1, 3)).all()


@pytest.mark.parametrize(
    ("grid", "name", "value"),
    [
        ((8, 8), "temporal_scale", (0.5, 1.0)),
        ((8, 8), "context_frames_ratio", 0.5),
        ((20,), "temporal_scale", (0.5, 1.0)),
        ((20,), "context_frames_ratio", 0.5),
        ((20,), "target_aspect_ratio", (1.0, 1.0)),
    ],
)
def test_arguments_without_effect_raise(grid, name, value):
    text = f"{name}={value}: has no effect on the grid {grid}, so must be left out"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        MultiBlockMask(grid, **{name: value})


def test_infeasible_in_time_says_so():
    text = (
        "min_context_coverage=0.25 needs 72 context tokens, and 72 + 32 (largest target block, "
        "4 x 4 x 4, 2 frames of it) = 104 exceeds 72 (largest context block). Change one of: "
    )
    with pytest.raises(InfeasibleMaskError, match=re.escape(text)) as raised:
        MultiBlockMask(
            (8, 6, 6), temporal_scale=(0.5, 0.5), context_frames_ratio=0.25, target_scale=(0.3, 0.4)
        )
    assert "context_frames_ratio=1.0" in str(raised.value)


@pytest.mark.parametrize("grid", [(4096,), (9000,), (2, 4096), (300, 301)])
def test_contexts_on_long_grids(grid):
    """Trap: sort keys with more bits than a float has, so that targets end up in the context."""
    sampler = MultiBlockMask(grid)
    masks = sampler(2, generator=torch.Generator().manual_seed(0))
    TokenSet(masks.context.idx, masks.context.valid, grid)  # values are checked
    assert not (masks.context.to_mask()[:, None] & masks.targets.to_mask()).any()
    assert masks.context.shape == (2, sampler.min_context_tokens)


def test_longer_axes_than_keys_can_order_are_refused():
    with pytest.raises(ValueError, match=r"grid_size=\(100000,\): must be smaller"):
        MultiBlockMask((100_000,))
