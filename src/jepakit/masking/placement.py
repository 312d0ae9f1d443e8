"""Where the blocks of a batch go: anywhere that keeps the promises, all such places equally likely.

Every function takes uniforms, one column for each block, and places one block after another for
the whole batch at once. Nothing is ever drawn again.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jepakit.masking.places import Blocks, summed_area

__all__: list[str] = []


def place_within_budget(
    blocks: Blocks,
    context: Int[Tensor, "b t"],
    uniforms: Float[Tensor, "b m"],
    *,
    need: int,
) -> Int[Tensor, "b m"]:
    """Places of blocks that together leave `need` cells of the context; removed from it in place.

    A block costs the context cells that no earlier block took. Its place is drawn among those whose
    cost the rest of the budget covers; the place of an earlier block costs nothing, so there is
    always one. The context must have `need` cells more than one block, so the first goes anywhere.
    """
    first, *later = uniforms.unbind(1)
    places = [blocks.anywhere(first)]
    for column in later:
        blocks.paint(context, places[-1], 0)
        table = summed_area(context, blocks.grid_size)
        budget = table[:, -1:] - need
        place, _ = blocks.among(blocks.sums(table) <= budget, column)
        places.append(place)
    blocks.paint(context, places[-1], 0)
    return torch.stack(places, dim=1)


def place_disjoint(
    blocks: Blocks,
    uniforms: Float[Tensor, "b m"],
    u_strips: Float[Tensor, "b u"],
    *,
    strips: int,
    slots: int,
) -> Int[Tensor, "b m"]:
    """Places of blocks that share no cell.

    Each is drawn among the free places. A sample for which none is left is packed in strips
    instead; `strips` and `slots` are the most that the sizes allow, 0 where that cannot happen.
    """
    first, *later = uniforms.unbind(1)
    places = [blocks.anywhere(first)]
    taken = blocks.field(places[0])
    stuck = torch.zeros(len(uniforms), dtype=torch.bool, device=uniforms.device)
    for column in later:
        place, found = blocks.among(blocks.sums(summed_area(taken, blocks.grid_size)) == 0, column)
        stuck = stuck | ~found
        blocks.paint(taken, place, 1)
        places.append(place)
    placed = torch.stack(places, dim=1)
    # Not worth waiting for an accelerator; on a CPU the answer is there, and nearly always no.
    if strips == 0 or (stuck.device.type == "cpu" and not stuck.any()):
        return placed
    packed = pack_in_strips(
        blocks, u_strips, num_blocks=len(places), max_strips=strips, max_slots=slots
    )
    return torch.where(stuck[:, None], packed, placed)


def pack_in_strips(
    blocks: Blocks,
    uniforms: Float[Tensor, "b u"],
    *,
    num_blocks: int,
    max_strips: int,
    max_slots: int,
) -> Int[Tensor, "b m"]:
    """Places of disjoint blocks in horizontal strips with random gaps; never fails.

    A strip as high as a block holds floor(W / w) blocks, and floor(H / h) strips fit; the rows and
    columns to spare become gaps between them. `max_strips` and `max_slots` are those numbers for
    the smallest block, and `uniforms` holds `max_strips * (1 + 2 * max_slots)` for each sample.
    """
    (height, width), h, w = blocks.grid_size, blocks.h, blocks.w
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
    places = (top[:, :, None] * blocks.stride + left.view(batch, max_strips, max_slots)).flatten(1)

    used_strip = torch.arange(max_strips, device=h.device) < strips[:, None]
    used_slot = torch.arange(max_slots, device=h.device) < slots[:, None]
    used = (used_strip[:, :, None] & used_slot[:, None]).flatten(1)
    keys = torch.where(used, u_slot, 2.0)
    return places.gather(1, keys.topk(num_blocks, dim=1, largest=False).indices)


def _sorted_gaps(uniforms: Tensor, spare: Tensor, count: Tensor) -> Tensor:
    """For the first `count` entries of each row: ascending integers in `[0, spare]`."""
    gaps = torch.minimum((uniforms * (spare + 1)[:, None]).long(), spare[:, None])
    unused = torch.arange(uniforms.shape[1], device=uniforms.device) >= count[:, None]
    return gaps.masked_fill(unused, torch.iinfo(torch.int64).max // 4).sort(dim=1).values
