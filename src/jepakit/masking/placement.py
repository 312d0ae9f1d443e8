"""Where the blocks of a batch go: anywhere that keeps the promises, all such places equally likely.

Every function takes uniforms, one column for each block, and places one block after another for
the whole batch at once. Nothing is ever drawn again.
"""

import math
from collections.abc import Sequence

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
    min_context_tokens: int,
) -> Int[Tensor, "b m"]:
    """Places of blocks that together leave `min_context_tokens` cells of the context; removed from it in place.

    A block costs the context cells that no earlier block took. Its place is drawn among those whose
    cost the rest of the budget covers; the place of an earlier block costs nothing, so there is
    always one. The context must have `min_context_tokens` cells more than one block, so the first goes anywhere.
    """
    first, *later = uniforms.unbind(1)
    places = [blocks.anywhere(first)]
    for column in later:
        blocks.paint(context, places[-1], 0)
        table = summed_area(context, blocks.grid_size)
        budget = table[:, -1:] - min_context_tokens
        place, _ = blocks.among(blocks.sums(table) <= budget, column)
        places.append(place)
    blocks.paint(context, places[-1], 0)
    return torch.stack(places, dim=1)


def place_disjoint(
    blocks: Blocks,
    context: Int[Tensor, "b t"],
    uniforms: Float[Tensor, "b m"],
    u_packing: Float[Tensor, "b u"],
    *,
    packing: Sequence[int],
) -> Int[Tensor, "b m"]:
    """Places of blocks that share no cell; removed from the context in place.

    Each is drawn among the free places. A sample for which none is left is packed instead, in
    `packing` blocks along each axis at most, () where that cannot happen.
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
    if packing and not (stuck.device.type == "cpu" and not stuck.any()):
        packed = pack(blocks, u_packing, num_blocks=len(places), most=packing)
        placed = torch.where(stuck[:, None], packed, placed)
    blocks.paint(context, placed, 0)
    return placed


def num_packing_draws(most: Sequence[int]) -> int:
    """Uniforms that `pack` takes for each sample."""
    levels = [math.prod(most[: axis + 1]) for axis in range(len(most))]
    return sum(levels) + sum(levels[-1:])


def pack(
    blocks: Blocks, uniforms: Float[Tensor, "b u"], *, num_blocks: int, most: Sequence[int]
) -> Int[Tensor, "b m"]:
    """Places of disjoint blocks in slabs, strips and slots with random gaps; never fails.

    Along an axis of `side` cells floor(side / size) blocks fit, and what is to spare becomes gaps
    between them: first slabs as thick as a block, in each slab strips as high, in each strip slots.
    `most` holds those numbers for the smallest block.
    """
    batch, device = len(uniforms), uniforms.device
    places = torch.zeros(batch, 1, dtype=torch.int64, device=device)
    used = torch.ones(len(blocks.sizes), 1, dtype=torch.bool, device=device)
    for axis, (side, stride, slots) in enumerate(
        zip(blocks.grid_size, blocks.strides, most, strict=True)
    ):
        size, slot = blocks.sizes[:, axis, None, None], torch.arange(slots, device=device)
        fit = slot < side // size
        drawn, uniforms = uniforms.tensor_split([places.shape[1] * slots], dim=1)
        # Ascending integers in [0, spare], as many as blocks fit, are the cells left out before.
        spare = side - side // size * size
        gaps = torch.minimum((drawn.view(batch, -1, slots) * (spare + 1)).long(), spare)
        gaps = gaps.masked_fill(~fit, side).sort(dim=2).values
        places = (places[:, :, None] + (gaps + slot * size) * stride).flatten(1)
        used = (used[:, :, None] & fit).flatten(1)
    keys = torch.where(used, uniforms, 2.0)
    order = keys.argsort(dim=1, stable=True)  # ties too are the same on every device
    return places.gather(1, order[:, :num_blocks])
