"""Places of a batch of target blocks: drawn uniformly among those that keep the promises.

Every function takes uniforms, one column for each block, and places one block after another for the
whole batch, on the CPU. Nothing is rejected and drawn again.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jepakit.masking._engine.block_grid import BlockGrid, summed_area


def place_within_budget(
    blocks: BlockGrid,
    context: Int[Tensor, "b t"],
    uniforms: Float[Tensor, "b m"],
    *,
    smallest_context: int,
    min_context_tokens: int,
) -> Int[Tensor, "b m"]:
    """Places of blocks that leave `min_context_tokens` cells of the context, a padded mask.

    The blocks are removed from `context` in place. A block costs the context cells that no earlier
    block took; its place is drawn among those whose cost the remaining budget covers. The place of
    an earlier block costs nothing, so there always is one. All contexts must have
    `smallest_context` cells at least, which leaves the first block free to go anywhere.

    Example: a context of 16 cells of which 6 must stay has a budget of 10. A first block of 2 x 3
    takes 6 of them and leaves 4. The second may go where it covers at most 4 cells of the context:
    where it overlaps the first one, or lies partly outside of the context.
    """
    # Blocks that fit the budget even if no two overlap can go anywhere: no need to count cells.
    free = (smallest_context - min_context_tokens) // blocks.largest_volume
    places = blocks.draw_places(uniforms)
    blocks.fill_blocks(context, places[:, :free], 0)
    for number in range(free, uniforms.shape[1]):
        budget = context.sum(dim=1, dtype=torch.int32) - min_context_tokens
        # Likewise, where the whole block is within the budget; the others are drawn again.
        bound = (budget < blocks.volumes).nonzero().squeeze(1)
        if len(bound) > 0:
            bound_blocks = blocks.of_samples(bound)
            covered = bound_blocks.covered_cells(summed_area(context[bound], blocks.grid_size))
            affordable = covered <= budget[bound, None]
            drawn = bound_blocks.draw_allowed_place(affordable, uniforms[bound, number])
            places[bound, number] = drawn.place
        blocks.fill_blocks(context, places[:, number], 0)
    return places


def place_disjoint(
    blocks: BlockGrid,
    context: Int[Tensor, "b t"],
    uniforms: Float[Tensor, "b m"],
    packing_uniforms: Float[Tensor, "b u"],
    *,
    packing: Sequence[int],
) -> Int[Tensor, "b m"]:
    """Places of blocks that share no cell; they are removed from the context in place.

    Each is drawn among the free places. A sample in which none is left is packed by `pack_blocks`
    instead, with `packing` blocks along each axis at most; () where none can run out of places.
    """
    places = blocks.draw_places(uniforms[:, :1])
    taken = blocks.padded_mask(places[:, 0])
    stuck = torch.zeros(len(uniforms), dtype=torch.bool, device="cpu")
    for column in uniforms[:, 1:].unbind(1):
        free = blocks.covered_cells(summed_area(taken, blocks.grid_size)) == 0
        place, exists = blocks.draw_allowed_place(free, column)
        stuck = stuck | ~exists
        blocks.fill_blocks(taken, place, 1)
        places = torch.cat([places, place[:, None]], dim=1)
    if packing and stuck.any():
        packed = pack_blocks(blocks, packing_uniforms, num_blocks=places.shape[1], most=packing)
        places = torch.where(stuck[:, None], packed, places)
    blocks.fill_blocks(context, places, 0)
    return places


def num_packing_uniforms(most: Sequence[int]) -> int:
    """Uniforms that `pack_blocks` takes for each sample: all gaps, then the choice of slots."""
    slots = [math.prod(most[: axis + 1]) for axis in range(len(most))]
    return sum(slots) + sum(slots[-1:])


def pack_blocks(
    blocks: BlockGrid, uniforms: Float[Tensor, "b u"], *, num_blocks: int, most: Sequence[int]
) -> Int[Tensor, "b m"]:
    """Places of disjoint blocks in slabs, strips and slots with random gaps; never fails.

    Along an axis of `side` cells floor(side / size) blocks fit, and the cells to spare become gaps
    between them: first slabs as thick as a block, in each slab strips as high, in each strip slots.
    `most` holds those numbers for the smallest block.

    Example: along 10 cells, 3 blocks of 3 leave 1 cell to spare. The sorted gaps 0, 1, 1 are the
    cells left out before each block, so they start at 0 + 0, 1 + 3 and 1 + 6.
    """
    batch = len(uniforms)
    places = torch.zeros(batch, 1, dtype=torch.int64, device="cpu")
    used = torch.ones(len(blocks.sizes), 1, dtype=torch.bool, device="cpu")
    for axis, (side, stride, slots) in enumerate(
        zip(blocks.grid_size, blocks.padded_strides, most, strict=True)
    ):
        size, slot = blocks.sizes[:, axis, None, None], torch.arange(slots, device="cpu")
        fits = slot < side // size
        gap_uniforms, uniforms = uniforms.tensor_split([places.shape[1] * slots], dim=1)
        spare = side - side // size * size
        gaps = (gap_uniforms.view(batch, -1, slots) * (spare + 1)).long()
        gaps = torch.minimum(gaps, spare).masked_fill(~fits, side).sort(dim=2).values
        places = (places[:, :, None] + (gaps + slot * size) * stride).flatten(1)
        used = (used[:, :, None] & fits).flatten(1)
    # The blocks go to a random subset of the slots; a stable sort breaks ties alike everywhere.
    keys = torch.where(used, uniforms, 2.0)
    order = keys.argsort(dim=1, stable=True)
    return places.gather(1, order[:, :num_blocks])
