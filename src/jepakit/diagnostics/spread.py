"""How far features spread in each dimension, and how long they are."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from jepakit.diagnostics._rows import valid_rows

__all__ = ["feature_std", "norm_drift"]


def feature_std(
    features: Float[Tensor, "*batch d"], valid: Bool[Tensor, "*batch"] | None = None
) -> Float[Tensor, " d"]:
    r"""Standard deviation of each dimension over the samples.

    $$s_j = \sqrt{\frac{1}{n - 1} \sum_i (x_{ij} - \bar x_j)^2}$$

    All near 0: full collapse. Some at 0: dead dimensions. Computed in float64, without a gradient.

    Args:
        features: Feature vectors; all axes but the last are rows.
        valid: True where a row counts. All rows if None.

    Returns:
        `d` numbers in float64, in units of the features.

    Raises:
        TypeError: If `features` is not floating point or `valid` not bool.
        ValueError: If there are fewer than 2 valid rows, no columns, or non-finite values.

    Example:
        >>> import torch
        >>> feature_std(torch.tensor([[1.0, 7.0], [2.0, 7.0], [3.0, 7.0]]))
        tensor([1., 0.], dtype=torch.float64)

    Source:
        SimSiam (arXiv:2011.10566) watches the mean of these, of features of unit length; divide by
        their norms before for the same.
    """
    return valid_rows("features", features, valid, minimum=2).std(dim=0)


def norm_drift(
    features: Float[Tensor, "*batch d"],
    reference: Float[Tensor, "*other d"],
    valid: Bool[Tensor, "*batch"] | None = None,
    reference_valid: Bool[Tensor, "*other"] | None = None,
) -> Float[Tensor, ""]:
    r"""Logarithm of how much longer feature vectors are than they were.

    $$\log \frac{\frac{1}{n} \sum_i \|x_i\|}{\frac{1}{m} \sum_i \|r_i\|}$$

    0 is no drift, $\pm 0.69$ twice or half as long. Lengths that keep growing are often the first
    sign of a run that diverges; lengths that fall to 0, of one that collapses.

    Args:
        features: Feature vectors; all axes but the last are rows.
        reference: Feature vectors to compare with, those of step 0 or of the teacher; other rows,
            and another number of them.
        valid: True where a row of `features` counts. All rows if None.
        reference_valid: True where a row of `reference` counts. All rows if None.

    Returns:
        A float64 scalar; minus infinity if all features are 0.

    Raises:
        TypeError: If features are not floating point or validity not bool.
        ValueError: If there is no valid row or no column in one of them, non-finite values, other
            widths, or only zeros in `reference`.

    Example:
        >>> import torch
        >>> x = torch.tensor([[3.0, 4.0]])
        >>> round(float(norm_drift(2 * x, x)), 4)
        0.6931

    Source:
        jepakit's own.
    """
    now = valid_rows("features", features, valid, minimum=1)
    then = valid_rows("reference", reference, reference_valid, minimum=1)
    if now.shape[1] != then.shape[1]:
        raise ValueError(
            f"reference {tuple(reference.shape)}: must have the width of features "
            f"{tuple(features.shape)}"
        )
    length: Tensor = torch.linalg.vector_norm(then, dim=1).mean()
    if length == 0:
        raise ValueError("reference: must not be all zeros; nothing is longer or shorter than 0")
    now_length: Tensor = torch.linalg.vector_norm(now, dim=1).mean()
    return (now_length / length.to(now.device)).log()
