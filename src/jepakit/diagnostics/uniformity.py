"""Uniformity and alignment on the unit sphere."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from jepakit._checks import check_number, check_same_shape
from jepakit.diagnostics._rows import valid_rows

__all__ = ["alignment", "kernel_mean", "uniformity"]

# Rows whose distances to all others are held at once.
_CHUNK = 1024


def uniformity(
    features: Float[Tensor, "*batch d"],
    valid: Bool[Tensor, "*batch"] | None = None,
    *,
    t: float = 2.0,
) -> Float[Tensor, ""]:
    r"""How evenly features cover the unit sphere; lower is more even, 0 is one single direction.

    $$U = \log \frac{1}{n (n - 1)} \sum_{i \ne j} e^{-t \|u_i - u_j\|^2}, \qquad
        u_i = \frac{x_i}{\|x_i\|}$$

    It does not see length, and a large common mean makes all features point one way: 0. On a sphere
    of many dimensions, even features come near $-2t$, where all pairs are at right angles.

    Compares all pairs: give it a batch, not a data set. Computed in float64, without a gradient.

    Args:
        features: Feature vectors; all axes but the last are rows.
        valid: True where a row counts. All rows if None.
        t: Sharpness of the kernel, above 0.

    Returns:
        A float64 scalar, at most 0.

    Raises:
        TypeError: If `features` is not floating point or `valid` not bool.
        ValueError: If there are fewer than 2 valid rows, no columns, or non-finite values, or `t`
            is not above 0.

    Example:
        >>> import torch
        >>> ends = torch.tensor([[1.0, 0.0], [-3.0, 0.0]])  # unit vectors 2 apart: log exp(-2 * 4)
        >>> uniformity(ends)
        tensor(-8., dtype=torch.float64)

    Source:
        Wang and Isola (arXiv:2005.10242), as in its code: each pair once and no sample with itself,
        which would keep the value from going below $-\log n$.
    """
    check_number("t", t, positive=True)
    rows = valid_rows("features", features, valid, minimum=2)
    present = torch.ones(len(rows), 1, dtype=torch.bool, device=rows.device)
    return kernel_mean(rows, present, t).log()


def kernel_mean(rows: Tensor, present: Tensor, t: float) -> Tensor:
    """Mean of the Gaussian kernel over pairs of different present rows; 1 where there is none."""
    units = F.normalize(rows, dim=1)
    weights = present.squeeze(1).to(units.dtype)
    count = weights.sum()
    total = torch.zeros_like(count)
    for start in range(0, len(units), _CHUNK):
        some = units[start : start + _CHUNK]
        kernel = torch.exp(-t * torch.cdist(some, units).square())
        kernel[:, start : start + _CHUNK].diagonal().zero_()
        total = total + weights[start : start + _CHUNK] @ kernel @ weights
    pairs = count * (count - 1)
    return torch.where(pairs > 0, total / pairs.clamp(min=1), torch.ones_like(total))


def alignment(
    first: Float[Tensor, "*batch d"],
    second: Float[Tensor, "*batch d"],
    valid: Bool[Tensor, "*batch"] | None = None,
    *,
    exponent: float = 2.0,
) -> Float[Tensor, ""]:
    r"""Mean distance, on the unit sphere, of two views of one sample; 0 is agreement.

    $$A = \frac{1}{n} \sum_i \|u_i - v_i\|^{\gamma}$$

    Good features have a low alignment and a low `uniformity` together; a collapse has a perfect
    alignment of 0 and the worst uniformity, also 0.

    Args:
        first: Features of one view; all axes but the last are rows.
        second: Features of the other view, row by row.
        valid: True where a row counts. All rows if None.
        exponent: $\gamma$, above 0.

    Returns:
        A float64 scalar.

    Raises:
        TypeError: If features are not floating point or `valid` not bool.
        ValueError: If shapes do not fit, there is no valid row, no column, or a non-finite value,
            or `exponent` is not above 0.

    Example:
        >>> import torch
        >>> x = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> float(alignment(x, 5 * x)), float(alignment(x, -x))
        (0.0, 4.0)

    Source:
        Wang and Isola (arXiv:2005.10242), no difference.
    """
    check_same_shape("second", second, "first", first)
    check_number("exponent", exponent, positive=True)
    x = F.normalize(valid_rows("first", first, valid, minimum=1), dim=1)
    y = F.normalize(valid_rows("second", second, valid, minimum=1), dim=1)
    distances: Tensor = torch.linalg.vector_norm(x - y, dim=1)
    return distances.pow(exponent).mean()
