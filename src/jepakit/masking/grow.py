"""Sets of an exact size that grow as blocks: rectangles around random cells, one after another."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from jepakit._checks import check_fraction, check_range
from jepakit.masking.feasibility import InfeasibleMaskError
from jepakit.masking.uniforms import copy_to

__all__: list[str] = []

# Uniforms for one block: its share, aspect ratio, centre, and the side from which it fills up.
DRAWS_PER_BLOCK = 4
# How much of a ring's distance the side from which it fills up can make at most.
_SIDE = 1e-4


def exact_count(name: str, ratio: float, grid_size: tuple[int, int]) -> int:
    """Cells that a ratio amounts to, with at least one in the set and one outside it."""
    check_fraction(name, ratio, open_low=True)
    if ratio == 1:
        raise ValueError(f"{name}=1: must be below 1, so that there are both context and targets")
    size = math.prod(grid_size)
    if size < 2:
        raise InfeasibleMaskError(
            f"grid_size={grid_size}: one position cannot be both context and target. "
            "Change: grid_size to at least 2 positions"
        )
    return min(max(1, math.floor(ratio * size + 0.5)), size - 1)


def grow_blocks(
    grid_size: tuple[int, int],
    count: int,
    block_scale: tuple[float, float],
    aspect_ratio: tuple[float, float],
    uniforms: Float[Tensor, "b u"],
    device: torch.device | str | None,
) -> Bool[Tensor, "b N"]:
    """Flat masks of `count` cells each.

    A block grows around a random cell as a rectangle of its aspect ratio, clipped by the border,
    until it has added its share of new cells: a fraction of the grid drawn from `block_scale`, or
    what is still missing. `uniforms` holds `DRAWS_PER_BLOCK` for each of `num_rounds` blocks.
    """
    height, width = grid_size
    size = height * width
    blocks = _draw_blocks(grid_size, block_scale, aspect_ratio, uniforms)
    share, centre, wide, tall, up, left = copy_to(blocks, device).unsqueeze(3).unbind(2)
    share, centre = share.long(), centre.long()

    cell = torch.arange(size, device=share.device)
    mask = torch.zeros(len(share), size, dtype=torch.bool, device=share.device)
    missing = torch.full((len(share), 1), count, dtype=torch.int64, device=share.device)
    for block in range(share.shape[1]):
        at = centre[:, block]
        down, right = cell // width - at // width, cell % width - at % width
        ring = torch.maximum(down.abs() * wide[:, block], right.abs() * tall[:, block])
        # The last ring fills up from one side.
        key = (ring + (down * up[:, block] + right * left[:, block])).masked_fill_(mask, math.inf)
        new = torch.minimum(share[:, block], missing)
        order = key.argsort(dim=1, stable=True)  # cells at one distance come in raster order
        mask.scatter_(1, order, (cell < new) | mask.gather(1, order))
        missing = missing - new
    return mask


def _draw_blocks(
    grid_size: tuple[int, int],
    block_scale: tuple[float, float],
    aspect_ratio: tuple[float, float],
    uniforms: Float[Tensor, "b u"],
) -> Float[Tensor, "b rounds 6"]:
    """Each block's share and centre, and what one step down and right counts: ring and side.

    On the CPU, where roots, sines and quotients are the same for every device; what is left is
    rounded in one way everywhere.
    """
    height, width = grid_size
    size = height * width
    u = uniforms.double().view(len(uniforms), -1, DRAWS_PER_BLOCK)
    least, most = (max(1, math.floor(end * size + 0.5)) for end in block_scale)
    share = (least + (u[..., 0] * (most - least + 1)).long()).clamp_max(most)
    low, high = math.log(aspect_ratio[0]), math.log(aspect_ratio[1])
    # Beyond the longer side nothing changes: a block is then a line until it meets both borders.
    longest = math.log(max(height, width))
    tall = ((low + (high - low) * u[..., 1]) / 2).clamp(-longest, longest).exp()
    centre = (u[..., 2] * size).long().clamp_max(size - 1)
    angle = 2 * math.pi * u[..., 3]
    side = _SIDE / (height + width)  # never outweighs a whole ring's distance
    columns = [share, centre, 1 / tall, tall, side * angle.sin(), side * angle.cos()]
    return torch.stack([column.float() for column in columns], dim=2)


def num_rounds(grid_size: tuple[int, int], count: int, block_scale: tuple[float, float]) -> int:
    """Blocks after which `count` cells are reached, however small their shares are."""
    return math.ceil(count / max(1, math.floor(block_scale[0] * math.prod(grid_size) + 0.5)))


def check_blocks(
    block_scale: tuple[float, float],
    block_aspect_ratio: object,
    *,
    count: int,
    grid_size: tuple[int, int],
    default: tuple[float, float],
) -> None:
    """Raise unless both are ranges of what they say, and shares that are drawn matter."""
    check_range("block_scale", block_scale, high=1.0)
    check_range("block_aspect_ratio", block_aspect_ratio)
    drawn = block_scale[0] < block_scale[1] and block_scale != default
    if drawn and num_rounds(grid_size, count, block_scale) == 1:
        raise ValueError(
            f"block_scale={block_scale}: has no effect, since the smallest block has all of the "
            f"{count} patches already; must begin lower, or be (1.0, 1.0) for a single block"
        )
