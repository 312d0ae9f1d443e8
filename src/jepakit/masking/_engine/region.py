"""Multi-block masks where data fills a part of the grid only: padded clips, a body in a scan.

Everything runs on the device of the data's mask, without a host synchronisation. Sizes follow from
what a sample holds: a target's area is a fraction of its positions, a context block's sides are
fractions of its bounding box. On a sample that holds a box, masks are those of a grid of that size,
with two differences: the low end of `context_scale` is raised to what the drawn target needs, not
the largest one, and disjoint targets are clipped where no place is left, not packed.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jepakit._checks import values_readable
from jepakit.masking._engine.block_grid import (
    BlockGrid,
    add_padding,
    remove_padding,
    summed_area,
)
from jepakit.masking._engine.block_sizes import draw_sizes
from jepakit.masking._engine.multi_block_arguments import MultiBlockArguments


class RegionMasks(NamedTuple):
    """Visible positions before contexts are shortened, and targets; flat over the grid."""

    visible: Bool[Tensor, "b N"]
    targets: Bool[Tensor, "b m N"]


class BoundingBox(NamedTuple):
    """First coordinate and extent along each axis of what a sample holds."""

    first: Int[Tensor, "b axes"]
    extent: Int[Tensor, "b axes"]


def draw_in_region(
    arguments: MultiBlockArguments,
    valid: Bool[Tensor, "b N"],
    u_target_size: Float[Tensor, "k 3"],
    u_context_size: Float[Tensor, "k 1"],
    u_context: Float[Tensor, "b 1"],
    u_targets: Float[Tensor, "b m"],
) -> RegionMasks:
    """Masks inside of `valid`, which holds enough in each sample.

    A target is drawn among the places where its block lies inside and its cost (see
    `place_within_budget`) is met. Where there is none, the block is clipped to what is there, at a
    place that takes no more than the budget. Where there is none of these either, it is a single
    position.
    """
    grid_size, counts = arguments.grid_size, valid.sum(dim=1)
    box = bounding_box(valid, grid_size)
    sizes = draw_sizes(
        grid_size,
        arguments.target_scale,
        arguments.target_aspect_ratio,
        arguments.temporal_scale,
        u_target_size,
        largest_rectangle=arguments._largest_rectangle,
        extents=box.extent,
        num_cells=counts,
    )
    blocks, inside = BlockGrid(grid_size, sizes), add_padding(valid, grid_size)
    minimum = arguments._min_context_tokens_of(counts)[:, None]
    num_targets = u_targets.shape[1]
    cost = blocks.volumes[:, None]
    if len(grid_size) == 3:  # a target takes cells from the context's frames only
        frames = sizes[:, :1]
        cost = cost // frames * frames.minimum(arguments._context_frames_of(box.extent[:, :1]))
    room = minimum + cost * (1 if arguments.allow_target_overlap else num_targets)
    context = _context_block(arguments, inside, box, u_context_size, u_context, room)

    covered = blocks.covered_cells(summed_area(inside, grid_size))
    whole = covered == blocks.volumes[:, None]
    taken, targets = torch.zeros_like(inside), []
    for number, column in enumerate(u_targets.unbind(1)):
        # Disjoint targets leave at least one position for each of those that follow.
        reserve = 0 if arguments.allow_target_overlap else num_targets - 1 - number
        table = summed_area(context, grid_size)
        budget = table[:, -1:] - minimum - reserve
        allowed = (covered > 0) & (blocks.covered_cells(table) <= budget)
        positions = inside * ((context == 0) | (budget > 0))
        if not arguments.allow_target_overlap:
            allowed &= blocks.covered_cells(summed_area(taken, grid_size)) == 0
            positions = positions * (taken == 0)
        target, exists = _block_or_nothing(blocks, allowed & whole, column)
        if not _all_true(exists):
            clipped, clipped_exists = _block_or_nothing(blocks, allowed, column)
            target = torch.where(exists, target, clipped * inside)
            exists = exists | clipped_exists
        if not _all_true(exists):
            target = torch.where(exists, target, _random_member(positions, column))
        context = context * (1 - target)
        taken = torch.maximum(taken, target)
        targets.append(target)
    stacked = torch.stack(targets, dim=1)
    return RegionMasks(remove_padding(context, grid_size), remove_padding(stacked, grid_size))


def bounding_box(valid: Bool[Tensor, "b N"], grid_size: tuple[int, ...]) -> BoundingBox:
    """The smallest box around the members; the whole grid where there are none."""
    grid = valid.view(len(valid), *grid_size)
    firsts, extents = [], []
    for axis, side in enumerate(grid_size, start=1):
        others = [other for other in range(1, grid.dim()) if other != axis]
        occupied = (grid.sum(dim=others) if others else grid).bool().int()
        first = occupied.argmax(dim=1)
        firsts.append(first)
        extents.append(side - occupied.flip(1).argmax(dim=1) - first)
    return BoundingBox(torch.stack(firsts, dim=1), torch.stack(extents, dim=1))


def first_frames(
    valid: Bool[Tensor, "b N"], box: BoundingBox, arguments: MultiBlockArguments
) -> Bool[Tensor, "b N"]:
    """The part of `valid` that a context may lie in: the first of a sample's frames."""
    if len(arguments.grid_size) < 3:
        return valid
    frame = torch.arange(arguments.grid_size[0], device=valid.device)
    seen = frame < (box.first[:, 0] + arguments._context_frames_of(box.extent[:, 0]))[:, None]
    return (valid.view(*seen.shape, -1) & seen[:, :, None]).flatten(1)


def _context_block(
    arguments: MultiBlockArguments,
    inside: Int[Tensor, "b t"],
    box: BoundingBox,
    u_size: Float[Tensor, "k 1"],
    u_place: Float[Tensor, "b 1"],
    room: Int[Tensor, "b 1"],
) -> Int[Tensor, "b t"]:
    """The part of a sample that a random block covers; all of it where it is less than `room`."""
    grid_size = arguments.grid_size
    valid = remove_padding(inside, grid_size)
    front = add_padding(first_frames(valid, box, arguments), grid_size)
    space = box.extent[:, -2:]
    # The low end of the scale is raised to what is needed, as on a whole grid.
    high = arguments.context_scale[1]
    needed = room / front.sum(dim=1, keepdim=True).double()
    low = needed.clamp(arguments.context_scale[0], high)
    root = (low + (high - low) * u_size.double()) ** (1 / space.shape[1])
    sides, within = torch.floor(space * root + 0.5).long().clamp_min(1), box.extent
    if len(grid_size) == 3:  # a block has all frames of the context, so it begins with the sample
        frames = arguments._context_frames_of(box.extent[:, :1])
        sides = torch.cat([frames, sides], dim=1)
        within = torch.cat([frames, space], dim=1)
    sides = sides + (sides.prod(dim=1, keepdim=True) < room)  # where rounding took too much
    blocks = BlockGrid(grid_size, sides.minimum(within))
    covered = blocks.covered_cells(summed_area(front, grid_size))
    allowed = (covered >= room) & blocks.fits_within(box.first, within)
    block, exists = _block_or_nothing(blocks, allowed, u_place[:, 0])
    return torch.where(exists, block, 1) * front


class _Block(NamedTuple):
    cells: Int[Tensor, "b t"]
    exists: Bool[Tensor, "b 1"]


def _block_or_nothing(
    blocks: BlockGrid, allowed: Bool[Tensor, "b p"], uniforms: Float[Tensor, " b"]
) -> _Block:
    place, exists = blocks.draw_allowed_place(allowed, uniforms)
    # Where there is no place to draw, the result may lie past the last one.
    return _Block(blocks.padded_mask(place.clamp_max(allowed.shape[1] - 1)), exists[:, None])


def _random_member(mask: Int[Tensor, "b t"], uniforms: Float[Tensor, " b"]) -> Int[Tensor, "b t"]:
    rank = mask.cumsum(dim=1)
    chosen = torch.minimum((uniforms[:, None] * rank[:, -1:]).long(), rank[:, -1:] - 1)
    return mask * (rank == chosen + 1)


def _all_true(exists: Tensor) -> bool:
    """True if all are known to be true, which is not looked up on an accelerator."""
    return values_readable(exists) and bool(exists.all())
