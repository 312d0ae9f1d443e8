"""Where a token is: fixed sine-cosine tables and rotary tables on grids of one to three axes."""

import torch
from jaxtyping import Float
from torch import Tensor

__all__: list[str] = []


def grid_coordinates(grid_size: tuple[int, ...], level: int = 0) -> Float[Tensor, "N axes"]:
    """Coordinates of every position in patches, row-major; of a level, the centres of its cells.

    A cell is a window of `2**level` patches along each axis, cut off by the border.
    """
    axes = []
    for side in grid_size:
        first = torch.arange(0, side, 2**level, dtype=torch.float64)
        last = (first + 2**level - 1).clamp(max=side - 1)
        axes.append((first + last) / 2)
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, len(grid_size))


def sincos_table(grid_size: tuple[int, ...], dim: int, level: int = 0) -> Float[Tensor, "N dim"]:
    r"""Fixed position embeddings: each axis gets an equal share of sines and cosines.

    For an axis with share $d$ and coordinate $x$, features $i < d / 2$ are
    $\sin(x\,10000^{-2i/d})$ and the next $d / 2$ the cosines of the same angles.
    """
    axes = len(grid_size)
    if dim % (2 * axes):
        raise ValueError(
            f"predictor_embed_dim={dim}: must be a multiple of {2 * axes} for sine-cosine "
            f"positions on the grid {grid_size} ({axes} axes, a sine and a cosine each)"
        )
    pairs = dim // (2 * axes)
    frequency = 10000.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    angles = grid_coordinates(grid_size, level)[:, :, None] * frequency
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1).float()


def rotary_table(
    grid_size: tuple[int, ...], head_dim: int, level: int = 0
) -> Float[Tensor, "N head_dim"]:
    r"""Angles of rotary embeddings: cosines of all pairs, then their sines.

    The $P$ = `head_dim` / 2 pairs of a head are shared out between the axes as evenly as they go.
    Pair $i < p$ of an axis with $p$ pairs turns by $x\,\theta^{-i/p}$, with coordinate $x$ in
    patches and $\theta = 100$, as suits grids of tens of patches.
    """
    axes, pairs = len(grid_size), head_dim // 2
    if head_dim % 2 or pairs < axes:
        raise ValueError(
            f"head dim {head_dim} (predictor_embed_dim / num_heads): must be even and at least "
            f"{2 * axes} for rotary positions on the grid {grid_size}"
        )
    coordinates = grid_coordinates(grid_size, level)
    angles = []
    for axis in range(axes):
        share = pairs // axes + (axis < pairs % axes)
        frequency = 100.0 ** (-torch.arange(share, dtype=torch.float64) / share)
        angles.append(coordinates[:, axis, None] * frequency)
    angle = torch.cat(angles, dim=-1)
    return torch.cat([angle.cos(), angle.sin()], dim=-1).float()


def rotate(
    x: Float[Tensor, "b h n head_dim"], table: Float[Tensor, "b n head_dim"]
) -> Float[Tensor, "b h n head_dim"]:
    """Turn the pairs (first half, second half) of every head by the angles of a rotary table."""
    cos, sin = table.to(x.dtype).unsqueeze(1).chunk(2, dim=-1)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
