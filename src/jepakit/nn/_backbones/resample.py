"""Weights of one shape made into those of another, as timm does it for its own models."""

from math import isqrt

from jaxtyping import Float
from torch import Tensor


def adapt_patch_kernel(
    kernel: Float[Tensor, "d c h w"], shape: tuple[int, ...]
) -> tuple[Float[Tensor, "..."], str]:
    """Return a patch embedding's kernel for other channels and another patch size, and how.

    Unchanged where timm has no rule: from other than 3 channels to several.
    """
    from timm.layers.patch_embed import resample_patch_embed
    from timm.models import adapt_input_conv

    done = []
    channels, sides = shape[1], list(shape[2:])
    if kernel.shape[1] != channels and (kernel.shape[1] == 3 or channels == 1):
        kernel = adapt_input_conv(channels, kernel)
        done.append("summed over channels" if channels == 1 else "repeated over channels")
    if list(kernel.shape[2:]) != sides:
        kernel = resample_patch_embed(kernel, sides)
        done.append("resampled to the patch size")
    return kernel, " and ".join(done)


def adapt_positions(
    positions: Float[Tensor, "1 n d"],
    new_grid: tuple[int, int],
    old_grid: tuple[int, int] | None = None,
) -> Float[Tensor, "1 N d"]:
    """Return a position table on another grid; a square `old_grid` is assumed where None is given.

    Unchanged if the table is on no such grid.
    """
    from timm.layers.pos_embed import resample_abs_pos_embed

    count = positions.shape[1]
    rows, columns = old_grid or (isqrt(count), isqrt(count))
    if rows * columns != count or (rows, columns) == new_grid:
        return positions
    resampled: Tensor = resample_abs_pos_embed(
        positions, list(new_grid), [rows, columns], num_prefix_tokens=0
    )
    if resampled is positions:  # timm before 1.0.27, where the count is the same
        raise ValueError(
            f"positions on the grid {(rows, columns)}: need a newer timm for {new_grid}"
        )
    return resampled
