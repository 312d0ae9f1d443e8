"""Rules that every sample of multi-block masks must keep, checked from the masks alone."""

import math

import torch
from torch import Tensor

from jepakit import Masks, MultiBlockMask, TokenSet


def sides_between(low: float, high: float, limit: int) -> tuple[int, int]:
    """The smallest and largest side that squares between the two areas round to."""
    ends = (math.floor(math.sqrt(area) + 0.5) for area in (low * (1 - 1e-9), high * (1 + 1e-9)))
    first, last = (min(max(1, end), limit) for end in ends)
    return first, last


def box_sides(fields: Tensor, num_axes: int) -> Tensor:
    """Sides `[..., axes]` of fields `[..., *grid]`, each of which must be one full box."""
    sides = []
    for axis in range(-num_axes, 0):
        used = fields.any(dim=[other for other in range(-num_axes, 0) if other != axis])
        starts = used[..., 0].int() + (used[..., 1:] & ~used[..., :-1]).sum(dim=-1)
        assert (starts == 1).all(), "one run along each axis: in one piece, not empty"
        sides.append(used.sum(dim=-1))
    size = torch.stack(sides, dim=-1)
    volume = fields.sum(dim=list(range(-num_axes, 0)))
    assert (volume == size.prod(dim=-1)).all(), "a full box"
    return size


def assert_guarantee(sampler: MultiBlockMask, masks: Masks, batch_size: int) -> None:
    grid = sampler.grid_size
    size = math.prod(grid)
    for tokens in (masks.context, masks.targets):
        TokenSet(tokens.idx, tokens.valid, tokens.grid_size, tokens.padded)  # values are checked
    assert masks.context.shape[0] == batch_size
    assert masks.targets.shape[:2] == (batch_size, sampler.num_targets)

    context, targets = masks.context.to_mask(), masks.targets.to_mask()
    counts = context.sum(dim=1)
    need = max(1, math.ceil(sampler.min_context_coverage * size - 1e-9))
    if isinstance(sampler.context_length, int):
        assert sampler.min_context_tokens == sampler.context_length <= need
        assert (counts == sampler.context_length).all()
    else:
        assert sampler.min_context_tokens == need and (counts >= need).all()
    if sampler.context_length != "pad":
        assert not masks.context.padded
        assert (counts == masks.context.shape[1]).all()
    assert not (context[:, None] & targets).any(), "context and targets are disjoint"
    if not sampler.allow_target_overlap:
        assert (targets.sum(dim=1) <= 1).all(), "targets are disjoint"

    sides = box_sides(targets.view(*targets.shape[:2], *grid), len(grid))
    assert (sides == sides[:, :1]).all(), "one size in a sample"
    if sampler.target_size_per == "batch":
        assert (sides == sides[0, 0]).all(), "one size in the batch"
        assert not masks.targets.padded
    if len(grid) == 1:
        assert_lengths_follow(sides[..., 0], sampler.target_scale, size)
    else:
        assert_planes_follow_the_ranges(sampler, sides[..., -2], sides[..., -1])
    if len(grid) == 3:
        assert_lengths_follow(sides[..., 0], sampler.temporal_scale, grid[0])
        frames = context.view(-1, *grid).any(dim=(2, 3))
        assert not frames[
            :, max(1, math.floor(sampler.context_frames_ratio * grid[0] + 1e-9)) :
        ].any()

    # The context lies inside one block of the grid's own aspect.
    space = grid[-2:]
    fields = context.view(-1, *grid)
    root = sampler.context_scale[1] ** (1 / len(space))
    for axis, side in enumerate(space, start=len(grid) - len(space) + 1):
        used = fields.any(dim=[other for other in range(1, len(grid) + 1) if other != axis])
        used = used.view(len(fields), side).int()
        extent = side - used.argmax(dim=1) - used.flip(1).argmax(dim=1)
        assert (extent <= max(1, math.floor(side * root + 0.5 + 1e-9))).all()


def assert_lengths_follow(lengths: Tensor, scale: tuple[float, float], side: int) -> None:
    low, high = (math.floor(end * side + 0.5) for end in scale)
    assert (lengths >= min(max(1, low), side)).all()
    assert (lengths <= min(max(1, high), side)).all()


def assert_planes_follow_the_ranges(sampler: MultiBlockMask, h: Tensor, w: Tensor) -> None:
    grid_height, grid_width = sampler.grid_size[-2:]
    s0, s1 = (scale * grid_height * grid_width for scale in sampler.target_scale)
    a0, a1 = sampler.target_aspect_ratio
    h0, h1 = sides_between(s0 * a0, s1 * a1, grid_height)
    w0, w1 = sides_between(s0 / a1, s1 / a0, grid_width)
    assert ((h >= h0) & (h <= h1)).all()
    assert ((w >= w0) & (w <= w1)).all()
    # Before rounding the area was in the range; a side at 1 or at the grid's may have been clipped.
    low = torch.where(h > 1, h - 0.5, 0) * torch.where(w > 1, w - 0.5, 0)
    assert (low <= s1 * (1 + 1e-9)).all()
    inside = (h < grid_height) & (w < grid_width)
    assert ((h + 0.5) * (w + 0.5) >= s0 * (1 - 1e-9))[inside].all()
