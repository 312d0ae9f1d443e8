"""Sets of an exact size that grow in blocks: rectangles around random cells, one after another."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from jepakit.masking._engine.block_sizes import round_half_up
from jepakit.masking._engine.random_numbers import copy_to

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
    num_cells: int,
    block_scale: tuple[float, float],
    aspect_ratio: tuple[float, float],
    uniforms: Float[Tensor, "b u"],
    device: torch.device | str | int | None,
) -> Bool[Tensor, "b N"]:
    """Flat masks of `num_cells` cells each.

    A block grows around a random cell as a rectangle of its aspect ratio, clipped by the border,
    until it has added a number of new cells that is drawn from `block_scale`, as a fraction of the
    grid, or what is still missing. `uniforms` has `UNIFORMS_PER_BLOCK` numbers for each of
    `max_num_blocks` blocks.
    """
    _, width = grid_size
    blocks = _draw_blocks(grid_size, block_scale, aspect_ratio, uniforms)
    drawn, centre, per_row, per_column, tilt_down, tilt_right = (
        copy_to(blocks, device).unsqueeze(3).unbind(2)
    )
    drawn, centre = drawn.long(), centre.long()

    batch, num_blocks, _ = drawn.shape
    cell = torch.arange(math.prod(grid_size), device=drawn.device)
    mask = torch.zeros(batch, len(cell), dtype=torch.bool, device=drawn.device)
    missing = torch.full((batch, 1), num_cells, dtype=torch.int64, device=drawn.device)
    for k in range(num_blocks):
        down = cell // width - centre[:, k] // width
        right = cell % width - centre[:, k] % width
        # Cells at one distance form a ring, the outline of a rectangle. A block takes whole rings,
        # nearest first; the tilt orders the cells of the last ring from one side to the other.
        distance = torch.maximum(down.abs() * per_row[:, k], right.abs() * per_column[:, k])
        distance = distance + (down * tilt_down[:, k] + right * tilt_right[:, k])
        distance = distance.masked_fill_(mask, math.inf)  # cells of earlier blocks come last
        new = torch.minimum(drawn[:, k], missing)
        order = distance.argsort(dim=1, stable=True)  # cells at one distance in raster order
        mask.scatter_(1, order, (cell < new) | mask.gather(1, order))
        missing = missing - new
    return mask


def _draw_blocks(
    grid_size: tuple[int, int],
    block_scale: tuple[float, float],
    aspect_ratio: tuple[float, float],
    uniforms: Float[Tensor, "b u"],
) -> Float[Tensor, "b blocks 6"]:
    """Six numbers for each block: cells to add, centre, and four weights of a step.

    The weights are the distance of a step down, of a step right, and the tilt of both. They are
    computed on the CPU, where roots, sines and quotients are the same for every device; the
    remaining operations round alike everywhere.
    """
    height, width = grid_size
    size = height * width
    u = uniforms.double().view(len(uniforms), -1, UNIFORMS_PER_BLOCK)
    least, most = (max(1, round_half_up(end * size)) for end in block_scale)
    num_cells = (least + (u[..., 0] * (most - least + 1)).long()).clamp_max(most)
    low, high = math.log(aspect_ratio[0]), math.log(aspect_ratio[1])
    # A step right counts sqrt(aspect), a step down 1 / sqrt(aspect), so the height of a ring is
    # `aspect` times its width. Beyond the longer side the aspect ratio changes nothing: the block
    # is a line until it meets both borders.
    longest = math.log(max(height, width))
    root = ((low + (high - low) * u[..., 1]) / 2).clamp(-longest, longest).exp()
    centre = (u[..., 2] * size).long().clamp_max(size - 1)
    angle = 2 * math.pi * u[..., 3]
    tilt = _SIDE_WEIGHT / (height + width)  # over the whole grid less than one ring
    columns = [num_cells, centre, 1 / root, root, tilt * angle.sin(), tilt * angle.cos()]
    return torch.stack([column.float() for column in columns], dim=2)
