"""Isotropy: how alike the variances of all directions are."""

from jaxtyping import Bool, Float
from torch import Tensor

from jepakit.diagnostics._rows import valid_rows
from jepakit.diagnostics._spectrum import NO_VARIANCE, isotropy_of

__all__ = ["isotropy"]


def isotropy(
    features: Float[Tensor, "*batch d"], valid: Bool[Tensor, "*batch"] | None = None
) -> Float[Tensor, ""]:
    r"""Share of the dimensions that are used alike: 1 if the covariance is round, 0 on a line.

    $$I = \frac{k - 1}{d - 1}, \qquad
        k = \frac{\big(\sum_i \lambda_i\big)^2}{\sum_i \lambda_i^2}
        = \frac{(\mathrm{tr}\, C)^2}{\|C\|_F^2}$$

    $k$ is the participation ratio: `m` directions of equal variance give $k = m$. It needs no
    eigenvalues, and looks at the large ones, where `effective_rank` also sees a long tail. With few
    rows it is bounded by $(n - 2) / (d - 1)$. Without variance it is 0; of one dimension 1.
    Computed in float64, without a gradient.

    Args:
        features: Feature vectors; all axes but the last are rows.
        valid: True where a row counts. All rows if None.

    Returns:
        A float64 scalar in [0, 1].

    Raises:
        TypeError: If `features` is not floating point or `valid` not bool.
        ValueError: If there are fewer than 2 valid rows, no columns, or non-finite values.

    Example:
        >>> import torch
        >>> corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> float(isotropy(corners)), float(isotropy(corners * torch.tensor([1.0, 0.0])))
        (1.0, 0.0)

    Source:
        IsoScore (Rudman et al., arXiv:2108.07344); its steps, written out, come to the formula
        above.
    """
    rows = valid_rows("features", features, valid, minimum=2)
    centred = rows - rows.mean(dim=0)
    # Rounding has a shape of its own, often a round one.
    if centred.square().sum() <= NO_VARIANCE * rows.square().sum():
        centred = centred * 0
    return isotropy_of(centred.T @ centred)
