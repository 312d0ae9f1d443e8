"""Sets of an exact size that grow in blocks: rectangles around random cells, one after another."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jepakit.masking._engine.block_sizes import round_half_up
from jepakit.masking._engine.random_numbers import random_members

# Uniforms for one block: number of cells, aspect ratio, centre, and the side that fills up first.
UNIFORMS_PER_BLOCK = 4
# The side counts at most this much of the distance between two rings.
_SIDE_WEIGHT = 1e-4


def max_num_blocks(
    grid_size: tuple[int, int], num_cells: int, block_scale: tuple[float, float]
) -> int:
    """Blocks after which `num_cells` cells are reached, however small the blocks are."""
    smallest = max(1, round_half_up(block_scale[0] * math.prod(grid_size)))
    return math.ceil(num_cells / smallest)


def grow_blocks(
    grid_size: tuple[int, int],
    num_cells: Int[Tensor, " k"],
    block_scale: tuple[float, float],
    aspect_ratio: tuple[float, float],
    uniforms: Float[Tensor, "b u"],
    valid: Bool[Tensor, "b N"] | None = None,
) -> Bool[Tensor, "b N"]:
    """Flat masks of `num_cells` cells each, inside of `valid` if given.

    A block grows around a random cell as a rectangle of its aspect ratio, clipped by the border,
    until it has added a number of new cells that is drawn from `block_scale`, as a fraction of the
    grid (of what is valid), or what is still missing. `uniforms` has `UNIFORMS_PER_BLOCK` numbers
    for each of `max_num_blocks` blocks.
    """
    _, width = grid_size
    if valid is None:
        valid = torch.ones(1, math.prod(grid_size), dtype=torch.bool, device=uniforms.device)
    blocks = _draw_blocks(grid_size, block_scale, aspect_ratio, uniforms, valid)
    drawn, centre, per_row, per_column, tilt_down, tilt_right = blocks.unsqueeze(3).unbind(2)
    drawn, centre = drawn.long(), centre.long()

    batch, num_blocks, _ = drawn.shape
    cell = torch.arange(math.prod(grid_size), device=drawn.device)
    mask = torch.zeros(batch, len(cell), dtype=torch.bool, device=drawn.device)
    missing = num_cells[:, None].expand(batch, 1)
    for k in range(num_blocks):
        down = cell // width - centre[:, k] // width
        right = cell % width - centre[:, k] % width
        # Cells at one distance form a ring, the outline of a rectangle. A block takes whole rings,
        # nearest first; the tilt orders the cells of the last ring from one side to the other.
        distance = torch.maximum(down.abs() * per_row[:, k], right.abs() * per_column[:, k])
        distance = distance + (down * tilt_down[:, k] + right * tilt_right[:, k])
        # Cells of earlier blocks and those without data come last.
        distance = distance.masked_fill_(mask | ~valid, math.inf)
        # The last block takes all that is missing: more than drawn only where a sample's rounded
        # numbers do not add up to those of the whole grid.
        new = missing if k == num_blocks - 1 else torch.minimum(drawn[:, k], missing)
        order = distance.argsort(dim=1, stable=True)  # cells at one distance in raster order
        mask.scatter_(1, order, (cell < new) | mask.gather(1, order))
        missing = missing - new
    return mask


def _draw_blocks(
    grid_size: tuple[int, int],
    block_scale: tuple[float, float],
    aspect_ratio: tuple[float, float],
    uniforms: Float[Tensor, "b u"],
    valid: Bool[Tensor, "k N"],
) -> Float[Tensor, "b blocks 6"]:
    """Six numbers for each block: cells to add, centre, and four weights of a step.

    The weights are the distance of a step down, of a step right, and the tilt of both.
    """
    height, width = grid_size
    u = uniforms.double().view(len(uniforms), -1, UNIFORMS_PER_BLOCK)
    size = valid.sum(dim=1, keepdim=True)
    least, most = (torch.floor(end * size + 0.5).long().clamp_min(1) for end in block_scale)
    num_cells = torch.minimum(least + (u[..., 0] * (most - least + 1)).long(), most)
    low, high = math.log(aspect_ratio[0]), math.log(aspect_ratio[1])
    # A step right counts sqrt(aspect), a step down 1 / sqrt(aspect), so the height of a ring is
    # `aspect` times its width. Beyond the longer side the aspect ratio changes nothing: the block
    # is a line until it meets both borders.
    longest = math.log(max(height, width))
    root = ((low + (high - low) * u[..., 1]) / 2).clamp(-longest, longest).exp()
    centre = random_members(valid, u[..., 2])
    angle = 2 * math.pi * u[..., 3]
    tilt = _SIDE_WEIGHT / (height + width)  # over the whole grid less than one ring
    columns = [num_cells, centre, 1 / root, root, tilt * angle.sin(), tilt * angle.cos()]
    return torch.stack([column.float() for column in columns], dim=2)
