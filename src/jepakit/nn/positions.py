"""Positions on grids of one to three axes: sine-cosine tables, rotary embeddings.

Every feature of a fixed position depends on the coordinate along one axis alone. So one short
table serves all grids: `diagonal_table` holds the features of the positions (0, 0), (1/2, 1/2),
(1, 1) ..., and `grid_table` takes those of (i, j) from the rows of i and of j.
"""

from typing import Literal

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


def sincos_features(
    coordinates: Float[Tensor, "N axes"], dim: int, uniform_power: bool = True
) -> Float[Tensor, "N dim"]:
    r"""Fixed position embeddings, with as many features for each axis.

    For an axis with $d$ features and coordinate $x$, features $i < d / 2$ are
    $\sin(x\,10000^{-2i/d})$ and the next $d / 2$ the cosines of the same angles. On three axes, $d$
    is `dim / 3` rounded up to an even number, and the last axis loses its last features where three
    times that is too many: 64 features are 22, 22 and 20. With `uniform_power=False`, the first of
    three axes has half of the features, the others a quarter each.
    """
    axes = coordinates.shape[-1]
    kind: Kind = "sincos" if uniform_power else "sincos-half-time"
    check_width(kind, axes, dim)
    widths = _widths(kind, axes, dim)
    if uniform_power:
        widths[-1] = widths[0]  # before the cut
    parts = []
    for axis, width in enumerate(widths):
        angles = coordinates[:, axis, None] * _frequencies(10000.0, width // 2, coordinates.device)
        parts += [angles.sin(), angles.cos()]
    return torch.cat(parts, dim=-1)[:, :dim].float()


def rotary_features(
    coordinates: Float[Tensor, "N axes"], head_dim: int
) -> Float[Tensor, "N head_dim"]:
    r"""Rotary embeddings: cosines of the angles of all pairs of a head, then their sines.

    The `head_dim` / 2 pairs are divided between the axes as evenly as possible: 8 pairs on a grid
    `(T, H, W)` are 3, 3 and 2. Pair $i < p$ of an axis with $p$ pairs turns by $x\,\theta^{-i/p}$,
    with coordinate $x$ in patches and $\theta = 100$, as suits grids of tens of patches.
    """
    axes = coordinates.shape[-1]
    check_width("rope", axes, head_dim)
    angles = []
    for axis, count in enumerate(_widths("rope", axes, head_dim)[:axes]):
        frequency = _frequencies(100.0, count, coordinates.device)
        angles.append(coordinates[:, axis, None] * frequency)
    angle = torch.cat(angles, dim=-1)
    return torch.cat([angle.cos(), angle.sin()], dim=-1).float()


def vjepa2_features(
    coordinates: Float[Tensor, "N axes"], head_dim: int
) -> Float[Tensor, "N twice_head_dim"]:
    r"""Rotary embeddings of V-JEPA 2: cosines of the angles of all features, then their sines.

    Each of three axes has $2p$ features, $p$ = `head_dim` // 6; those that remain do not turn. The
    $p$ angles $x\,10000^{-i/p}$ of an axis are repeated as a block, $(a_0 .. a_{p-1}, a_0 ..
    a_{p-1})$, while `rotate_adjacent` turns the features $2i$ and $2i + 1$ together. So both
    features of a pair have different angles, and the scores do not depend on the distance alone;
    the published code says so, and keeps it for the sake of its weights.
    """
    check_width("rope-vjepa2", coordinates.shape[-1], head_dim)
    frequency = _frequencies(10000.0, head_dim // 6, coordinates.device)
    angles = [coordinates[:, axis, None] * frequency for axis in (0, 0, 1, 1, 2, 2)]
    angles.append(coordinates.new_zeros(len(coordinates), head_dim - 6 * len(frequency)))
    angle = torch.cat(angles, dim=-1)
    return torch.cat([angle.cos(), angle.sin()], dim=-1).float()


def _frequencies(base: float, count: int, device: torch.device) -> Float[Tensor, " count"]:
    i = torch.arange(count, dtype=torch.float64, device=device)
    return base ** (-i / count)


def sincos_table(grid_size: tuple[int, ...], dim: int) -> Float[Tensor, "N dim"]:
    """Sine-cosine embeddings of all positions of a grid, row-major."""
    return sincos_features(grid_coordinates(grid_size), dim)


# One table for all grids

Kind = Literal["sincos", "sincos-half-time", "rope", "rope-vjepa2"]


def check_width(kind: Kind, axes: int, dim: int, name: str = "dim") -> None:
    """Raise unless a kind has positions of this width; of a head's width, if it is rotary.

    `name` is that of the argument that the width comes from.
    """
    if kind in ("sincos-half-time", "rope-vjepa2") and axes != 3:
        argument = "uniform_power=False" if kind == "sincos-half-time" else f"position={kind!r}"
        raise ValueError(f"{argument}: must come with a grid of 3 axes, got {axes}")
    if kind == "sincos-half-time" and dim % 8:
        raise ValueError(f"{name}={dim}: must be a multiple of 8 with uniform_power=False")
    if kind == "sincos" and dim % (2 * axes) and (axes < 3 or dim % 2 or dim < 10):
        rule = f"must be a multiple of {2 * axes}" + ", or even and at least 10," * (axes == 3)
        raise ValueError(f"{name}={dim}: {rule} for sine-cosine positions on {axes} axes")
    if kind in ("rope", "rope-vjepa2"):
        least = 6 if kind == "rope-vjepa2" else 2 * axes
        if dim % 2 or dim < least:
            raise ValueError(
                f"head dim {dim} ({name} / num_heads): must be even and at least {least} for "
                f"rotary positions on {axes} axes"
            )


def _widths(kind: Kind, axes: int, dim: int) -> list[int]:
    """Widths of the parts of a row that follow the axes in turn.

    These are the features of each axis, or the cosines of each and then its sines. `dim` is that of
    the model, or of a head for rotary kinds.
    """
    if kind == "sincos":
        width = 2 * -(-dim // (2 * axes))
        return [*(axes - 1) * [width], dim - (axes - 1) * width]
    if kind == "sincos-half-time":
        return [dim // 2, dim // 4, dim // 4]
    if kind == "rope":
        pairs = dim // 2
        return 2 * [pairs // axes + (axis < pairs % axes) for axis in range(axes)]
    width = 2 * (dim // 6)
    return 2 * [width, width, dim - 2 * width]  # what does not turn counts with the last axis


def diagonal_table(
    kind: Kind, axes: int, dim: int, side: int, device: torch.device | None = None
) -> Float[Tensor, "rows width"]:
    """Features of the positions on the diagonal up to `side`, in steps of half a patch.

    The centres of patches have whole coordinates, those of coarser cells also halves.
    """
    half_steps = torch.arange(2 * side, dtype=torch.float64, device=device) / 2
    coordinates = half_steps[:, None].expand(-1, axes)
    if kind == "rope":
        return rotary_features(coordinates, dim)
    if kind == "rope-vjepa2":
        return vjepa2_features(coordinates, dim)
    return sincos_features(coordinates, dim, kind == "sincos")


def grid_table(
    diagonal: Float[Tensor, "rows width"], kind: Kind, grid_size: tuple[int, ...], level: int = 0
) -> Float[Tensor, "N width"]:
    """Features of the centres of all cells of a pyramid level, row-major, from a diagonal table.

    It only copies, so the numbers are those of `sincos_features` and `rotary_features`.
    """
    axes, width = len(grid_size), diagonal.shape[-1]
    widths = _widths(kind, axes, width // 2 if kind == "rope-vjepa2" else width)
    sides = [-(-side // 2**level) for side in grid_size]  # in cells
    parts = []
    for number, part in enumerate(torch.split(diagonal, widths, dim=-1)):
        axis = number % axes
        rows = _rows_of_cells(part, grid_size[axis], level)
        # [1, h, 1, width] for the second of three axes
        rows = rows[(None,) * axis + (slice(None),) + (None,) * (axes - 1 - axis)]
        parts.append(rows.expand(*sides, -1))
    return torch.cat(parts, dim=-1).flatten(0, -2)


def _rows_of_cells(
    part: Float[Tensor, "rows width"], side: int, level: int
) -> Float[Tensor, "cells width"]:
    """Rows of the centres of a level's cells along one axis of a grid."""
    window = 2**level
    rest = side % window
    # On a side of 5, the whole windows 0-1 and 2-3 of level 1 have their centres at 0.5 and 2.5,
    # rows 1 and 5; the last one is cut off: 4, row 8.
    whole = part[window - 1 : 2 * (side - rest) : 2 * window]
    if rest == 0:
        return whole
    last = 2 * side - rest - 1
    return torch.cat([whole, part[last : last + 1]])


def rotate_halves(
    x: Float[Tensor, "b h n head_dim"], table: Float[Tensor, "#b n head_dim"]
) -> Float[Tensor, "b h n head_dim"]:
    """Turn the pairs (first half, second half) of every head by the angles of a rotary table."""
    cos, sin = table.to(x.dtype).unsqueeze(1).chunk(2, dim=-1)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def rotate_adjacent(
    x: Float[Tensor, "b h n head_dim"], table: Float[Tensor, "#b n twice_head_dim"]
) -> Float[Tensor, "b h n head_dim"]:
    """Turn the pairs (2i, 2i + 1) of every head by a table with an angle for each feature."""
    cos, sin = table.to(x.dtype).unsqueeze(1).chunk(2, dim=-1)
    even, odd = x[..., 0::2], x[..., 1::2]
    # (x0, x1, x2, x3) becomes (-x1, x0, -x3, x2).
    turned = torch.stack([-odd, even], dim=-1).flatten(-2)
    return x * cos + turned * sin


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
