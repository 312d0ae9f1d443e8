"""Where the blocks of a batch go: anywhere that keeps the promises, all such places equally likely.

Every function takes uniforms, one column for each block, and places one block after another for
the whole batch at once. Nothing is ever drawn again.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jepakit.masking.blocks import (
    block_cells,
    box_sums,
    choose_corner,
    legal_corners,
    paint,
)

__all__: list[str] = []


def place_context(
    grid_size: tuple[int, int],
    h: Int[Tensor, " k"],
    w: Int[Tensor, " k"],
    uniforms: Float[Tensor, " b"],
    *,
    length: int,
) -> Bool[Tensor, "b H W"]:
    """One block for each sample, anywhere on the grid, as a field."""
    legal = legal_corners(grid_size, h, w).expand(len(uniforms), -1, -1)
    corner, _ = choose_corner(legal, uniforms)
    cells, _ = block_cells(grid_size, corner, h, w, length=length)
    return paint(torch.zeros_like(legal), cells, True)


def place_within_budget(
    context: Bool[Tensor, "b H W"],
    h: Int[Tensor, " k"],
    w: Int[Tensor, " k"],
    uniforms: Float[Tensor, "b m"],
    *,
    length: int,
    need: int,
) -> Int[Tensor, "b m"]:
    """First corners of blocks that together leave `need` cells of the context.

    A block costs the context cells that no earlier block took. Its place is drawn among those whose
    cost the rest of the budget covers; the place of an earlier block costs nothing, so there is
    always one. The context must have `need` cells more than one block.
    """
    grid_size = (context.shape[1], context.shape[2])
    legal = legal_corners(grid_size, h, w)
    budget = context.flatten(1).sum(dim=1, dtype=torch.int32) - need
    corners: list[Tensor] = []
    for column in uniforms.unbind(1):
        cost = box_sums(context, h, w)
        corner, _ = choose_corner((cost <= budget[:, None, None]) & legal, column)
        budget = budget - cost.flatten(1).gather(1, corner[:, None]).squeeze(1)
        cells, _ = block_cells(grid_size, corner, h, w, length=length)
        context = paint(context, cells, False)
        corners.append(corner)
    return torch.stack(corners, dim=1)


def place_disjoint(
    grid_size: tuple[int, int],
    h: Int[Tensor, " k"],
    w: Int[Tensor, " k"],
    uniforms: Float[Tensor, "b m"],
    u_strips: Float[Tensor, "b u"],
    *,
    length: int,
    strips: int,
    slots: int,
) -> Int[Tensor, "b m"]:
    """First corners of blocks that share no cell.

    Each is drawn among the free places. A sample for which none is left is packed in strips
    instead; `strips` and `slots` are the most that the sizes allow, 0 where that cannot happen.
    """
    batch, num_blocks = uniforms.shape
    legal = legal_corners(grid_size, h, w)
    taken = torch.zeros(batch, *grid_size, dtype=torch.bool, device=uniforms.device)
    stuck = torch.zeros(batch, dtype=torch.bool, device=uniforms.device)
    corners: list[Tensor] = []
    for column in uniforms.unbind(1):
        corner, found = choose_corner((box_sums(taken, h, w) == 0) & legal, column)
        stuck = stuck | ~found
        cells, _ = block_cells(grid_size, corner, h, w, length=length)
        taken = paint(taken, cells, True)
        corners.append(corner)
    placed = torch.stack(corners, dim=1)
    if strips == 0:
        return placed
    packed = pack_in_strips(
        grid_size, h, w, u_strips, num_blocks=num_blocks, max_strips=strips, max_slots=slots
    )
    return torch.where(stuck[:, None], packed, placed)


def pack_in_strips(
    grid_size: tuple[int, int],
    h: Int[Tensor, " k"],
    w: Int[Tensor, " k"],
    uniforms: Float[Tensor, "b u"],
    *,
    num_blocks: int,
    max_strips: int,
    max_slots: int,
) -> Int[Tensor, "b m"]:
    """First corners of disjoint blocks in horizontal strips with random gaps; never fails.

    A strip as high as a block holds floor(W / w) blocks, and floor(H / h) strips fit; the rows and
    columns to spare become gaps between them. `max_strips` and `max_slots` are those numbers for
    the smallest block, and `uniforms` holds `max_strips * (1 + 2 * max_slots)` for each sample.
    """
    height, width = grid_size
    batch = len(uniforms)
    strips, slots = height // h, width // w
    u_top = uniforms[:, :max_strips]
    u_left, u_slot = uniforms[:, max_strips:].chunk(2, dim=1)
    top = _sorted_gaps(u_top, height - strips * h, strips)
    top = top + torch.arange(max_strips, device=h.device) * h[:, None]
    columns = u_left.reshape(-1, max_slots)
    repeat = batch * max_strips // len(w)
    w_strip, slots_strip = w.repeat_interleave(repeat), slots.repeat_interleave(repeat)
    left = _sorted_gaps(columns, width - slots_strip * w_strip, slots_strip)
    left = left + torch.arange(max_slots, device=h.device) * w_strip[:, None]
    corners = (top[:, :, None] * width + left.view(batch, max_strips, max_slots)).flatten(1)

    used_strip = torch.arange(max_strips, device=h.device) < strips[:, None]
    used_slot = torch.arange(max_slots, device=h.device) < slots[:, None]
    used = (used_strip[:, :, None] & used_slot[:, None]).flatten(1)
    keys = torch.where(used, u_slot, 2.0)
    return corners.gather(1, keys.topk(num_blocks, dim=1, largest=False).indices)


def _sorted_gaps(uniforms: Tensor, spare: Tensor, count: Tensor) -> Tensor:
    """For the first `count` entries of each row: ascending integers in `[0, spare]`."""
    gaps = torch.minimum((uniforms * (spare + 1)[:, None]).long(), spare[:, None])
    unused = torch.arange(uniforms.shape[1], device=uniforms.device) >= count[:, None]
    return gaps.masked_fill(unused, torch.iinfo(torch.int64).max // 4).sort(dim=1).values
