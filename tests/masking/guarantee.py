"""What every sample of multi-block masks must keep, checked from the masks alone."""

import math

import torch
from torch import Tensor

from jepakit import Masks, MultiBlockMask, TokenSet


def sides_between(low: float, high: float, limit: int) -> tuple[int, int]:
    """The smallest and largest side that squares between the two areas round to."""
    ends = (math.floor(math.sqrt(area) + 0.5) for area in (low * (1 - 1e-9), high * (1 + 1e-9)))
    first, last = (min(max(1, end), limit) for end in ends)
    return first, last


def rectangle_sides(fields: Tensor) -> tuple[Tensor, Tensor]:
    """Height and width of fields `[..., H, W]`, each of which must be one full rectangle."""
    rows, columns = fields.any(dim=-1), fields.any(dim=-2)
    for used in (rows, columns):
        starts = used[..., 0].int() + (used[..., 1:] & ~used[..., :-1]).sum(dim=-1)
        assert (starts == 1).all(), "one run of rows and one of columns: in one piece, not empty"
    height, width = rows.sum(dim=-1), columns.sum(dim=-1)
    assert (fields.sum(dim=(-2, -1)) == height * width).all(), "a full rectangle"
    return height, width


def assert_guarantee(sampler: MultiBlockMask, masks: Masks, batch_size: int) -> None:
    grid_height, grid_width = sampler.grid_size
    size = grid_height * grid_width
    for tokens in (masks.context, masks.targets):
        TokenSet(tokens.idx, tokens.valid, tokens.grid_size, tokens.padded)  # values are checked
    assert masks.context.shape[0] == batch_size
    assert masks.targets.shape[:2] == (batch_size, sampler.num_targets)

    context, targets = masks.context.to_mask(), masks.targets.to_mask()
    counts = context.sum(dim=1)
    need = max(1, math.ceil(sampler.min_context_coverage * size - 1e-9))
    assert sampler.need == need
    if isinstance(sampler.context_length, int):
        assert (counts == sampler.context_length).all()
    else:
        assert (counts >= need).all()
    if sampler.context_length != "pad":
        assert not masks.context.padded
        assert (counts == masks.context.shape[1]).all()
    assert not (context[:, None] & targets).any(), "context and targets are disjoint"
    if not sampler.allow_target_overlap:
        assert (targets.sum(dim=1) <= 1).all(), "targets are disjoint"

    h, w = rectangle_sides(targets.view(*targets.shape[:2], grid_height, grid_width))
    assert (h == h[:, :1]).all() and (w == w[:, :1]).all(), "one size in a sample"
    if sampler.block_size == "batch":
        assert (h == h[0, 0]).all() and (w == w[0, 0]).all(), "one size in the batch"
        assert not masks.targets.padded
    assert_sizes_follow_the_ranges(sampler, h, w)

    # The context lies inside one block of the grid's own aspect.
    fields = context.view(-1, grid_height, grid_width)
    root = math.sqrt(sampler.context_scale[1])
    for axis, side in ((2, grid_height), (1, grid_width)):
        used = fields.any(dim=axis).int()
        extent = side - used.argmax(dim=1) - used.flip(1).argmax(dim=1)
        assert (extent <= max(1, math.floor(side * root + 0.5))).all()


def assert_sizes_follow_the_ranges(sampler: MultiBlockMask, h: Tensor, w: Tensor) -> None:
    grid_height, grid_width = sampler.grid_size
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
