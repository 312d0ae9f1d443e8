"""Positions on grids of one to three axes: coordinates, sine-cosine tables, rotary embeddings."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepakit._checks import type_name
from jepakit.nn._backbones import UnsupportedBackboneError
from jepakit.nn.masked_vit import MaskedViT

__all__ = ["init_sincos_positions"]


def grid_coordinates(grid_size: tuple[int, ...], level: int = 0) -> Float[Tensor, "N axes"]:
    """Coordinates in patches of the centres of all cells of a pyramid level, row-major.

    A cell is a window of `2**level` patches along each axis, cut off by the border: on the grid
    `(5,)` the cells of level 1 hold the patches 0-1, 2-3 and 4, with centres 0.5, 2.5 and 4.
    """
    axes = []
    for side in grid_size:
        first = torch.arange(0, side, 2**level, dtype=torch.float64)
        last = (first + 2**level - 1).clamp(max=side - 1)
        axes.append((first + last) / 2)
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def sincos_table(grid_size: tuple[int, ...], dim: int, level: int = 0) -> Float[Tensor, "N dim"]:
    r"""Fixed position embeddings, with as many features for each axis.

    For an axis with $d$ features and coordinate $x$, features $i < d / 2$ are
    $\sin(x\,10000^{-2i/d})$ and the next $d / 2$ the cosines of the same angles.
    """
    axes = len(grid_size)
    if dim % (2 * axes):
        rule = f"must be a multiple of {2 * axes} for sine-cosine positions on the grid {grid_size}"
        raise ValueError(f"predictor_embed_dim={dim}: {rule}")
    pairs = dim // (2 * axes)
    frequency = 10000.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    angles = grid_coordinates(grid_size, level)[:, :, None] * frequency
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1).float()


def rotary_table(
    grid_size: tuple[int, ...], head_dim: int, level: int = 0
) -> Float[Tensor, "N head_dim"]:
    r"""Table of rotary embeddings: cosines of the angles of all pairs, then their sines.

    The `head_dim` / 2 pairs of a head are divided between the axes as evenly as possible: 8 pairs
    on a grid `(T, H, W)` are 3, 3 and 2. Pair $i < p$ of an axis with $p$ pairs turns by
    $x\,\theta^{-i/p}$, with coordinate $x$ in patches and $\theta = 100$, as suits grids of tens
    of patches.
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
        count = pairs // axes + (axis < pairs % axes)
        frequency = 100.0 ** (-torch.arange(count, dtype=torch.float64) / count)
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


def init_sincos_positions(encoder: MaskedViT) -> None:
    r"""Set a backbone's learned position embeddings to sines and cosines, in place.

    For a patch at row $r$ and column $c$, with $d$ the width and $w_i = 10000^{-4i/d}$,

    $$p = (\sin r w_i,\ \cos r w_i,\ \sin c w_i,\ \cos c w_i), \qquad 0 \le i < d / 4$$

    and zeros for class and register tokens. timm draws the embeddings with a std of 0.02, which is
    small against the output of a patch embedding: a student first has to learn where each patch
    is, and a short run ends before it has. The embeddings stay trainable.

    For training from scratch: the positions of a pretrained backbone are overwritten. Call this
    before the teacher is copied and before `torch.compile`.

    Args:
        encoder: Its backbone has a learned position embedding, `pos_embed`, of the whole grid, with
            a width that is a multiple of 4.

    Raises:
        UnsupportedBackboneError: If the backbone has no such embedding (rotary and relative
            positions, NaFlexViT).

    Example:
        >>> import timm
        >>> from jepakit import MaskedViT
        >>> from jepakit.nn import init_sincos_positions
        >>> encoder = MaskedViT(timm.create_model("vit_tiny_patch16_224", num_classes=0))
        >>> init_sincos_positions(encoder)
        >>> encoder.backbone.pos_embed.detach()[0, 1, :3]  # sines of row 0
        tensor([0., 0., 0.])

    Source:
        The positions of MAE (arXiv:2111.06377) and I-JEPA (arXiv:2301.08243). Differences: they
        freeze them and put the column first.
    """
    if not isinstance(encoder, MaskedViT):
        raise TypeError(f"encoder: must be a MaskedViT, got {type_name(encoder)}")
    embedding = getattr(encoder.backbone, "pos_embed", None)
    rows, columns = encoder.grid_size
    name = type(encoder.backbone).__name__
    if not isinstance(embedding, nn.Parameter) or embedding.dim() != 3:
        raise UnsupportedBackboneError(f"{name} has no `pos_embed` of shape [1, tokens, width]")
    prefix = embedding.shape[1] - rows * columns
    if prefix not in (0, encoder.num_prefix_tokens):
        rule = f"must have a row for each of {rows} x {columns} patches"
        raise UnsupportedBackboneError(f"{name}.pos_embed {tuple(embedding.shape)}: {rule}")
    width = embedding.shape[2]
    if width % 4:
        raise ValueError(f"{name}.pos_embed is {width} wide: must be a multiple of 4")
    with torch.no_grad():
        embedding[:, :prefix] = 0
        embedding[:, prefix:] = sincos_table((rows, columns), width)
