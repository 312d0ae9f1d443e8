"""Effective rank and RankMe: how many directions features really use."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from jepakit.diagnostics._rows import valid_rows
from jepakit.diagnostics._spectrum import entropy_rank, scatter_spectrum

__all__ = ["centred_spectrum", "effective_rank", "rankme"]


def effective_rank(
    features: Float[Tensor, "*batch d"], valid: Bool[Tensor, "*batch"] | None = None
) -> Float[Tensor, ""]:
    r"""Exponential of the entropy of the spectrum of the centred covariance.

    $$\mathrm{erank} = \exp\Big(-\sum_i p_i \log p_i\Big), \qquad
        p_i = \lambda_i \Big/ \sum_j \lambda_j, \qquad
        \lambda = \mathrm{eig}\big(\mathrm{cov}(x)\big)$$

    It is between 1 (all variance along one line) and the smaller of `d` and the number of rows
    minus 1, and it does not change with scale, shift or rotation. Features without variance have no
    spectrum: they give 0, so that a full collapse never looks like a rank of 1. "Without variance"
    means a total variance of at most $10^{-12}$ of the mean square, which is what rounding leaves
    in constant float32 features.

    Computed in float64, without a gradient, from the smaller of the covariance (`d` x `d`) and the
    Gram matrix (rows x rows). The eigenvalue solver waits for the device: call it every so many
    steps, not in a compiled forward.

    Args:
        features: Feature vectors; all axes but the last are rows.
        valid: True where a row counts. All rows if None.

    Returns:
        The effective rank in dimensions, a float64 scalar.

    Raises:
        TypeError: If `features` is not floating point or `valid` not bool.
        ValueError: If there are fewer than 2 valid rows, no columns, or non-finite values.

    Example:
        >>> import torch
        >>> corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> round(float(effective_rank(corners + 100)), 4)
        2.0
        >>> effective_rank(torch.ones(4, 2))
        tensor(0., dtype=torch.float64)

    Source:
        Roy and Vetterli, The effective rank (EUSIPCO 2007), applied to the eigenvalues of the
        centred covariance. `rankme` takes the singular values of the uncentred features instead,
        in which a large mean hides everything else.
    """
    return entropy_rank(centred_spectrum(valid_rows("features", features, valid, minimum=2)))


def rankme(
    features: Float[Tensor, "*batch d"], valid: Bool[Tensor, "*batch"] | None = None
) -> Float[Tensor, ""]:
    r"""Exponential of the entropy of the singular values of the features, which are not centred.

    $$\mathrm{RankMe} = \exp\Big(-\sum_k p_k \log p_k\Big), \qquad
        p_k = \sigma_k \Big/ \sum_j \sigma_j, \qquad \sigma = \mathrm{svd}(x)$$

    Use it to compare with published numbers, and `effective_rank` to watch a run. They differ
    twice. Singular values are roots of eigenvalues, so small directions count for more: the number
    is larger, often by far. And the mean is left in: it adds one direction, constant features have
    a RankMe of 1 and not of 0, and beside a large mean all others fade. Only features that are all
    zeros give 0.

    Computed in float64, without a gradient; waits for the device.

    Args:
        features: Feature vectors; all axes but the last are rows. The paper takes 25,600 of them:
            it is bounded by their number.
        valid: True where a row counts. All rows if None.

    Returns:
        RankMe in dimensions, a float64 scalar.

    Raises:
        TypeError: If `features` is not floating point or `valid` not bool.
        ValueError: If there is no valid row, no column, or a non-finite value.

    Example:
        >>> import torch
        >>> x = torch.tensor([[3.0, 0.0], [0.0, 1.0]])  # singular values 3 and 1
        >>> round(float(rankme(x)), 4)  # exp(0.75 log(4 / 3) + 0.25 log 4)
        1.7548
        >>> round(float(rankme(torch.ones(4, 2))), 4)
        1.0

    Source:
        RankMe (arXiv:2210.02885). It adds 1e-7 to each $p_k$ before the logarithm; here
        $0 \log 0 = 0$ instead. Code bases that call the entropy of covariance eigenvalues "RankMe"
        compute `effective_rank`.
    """
    rows = valid_rows("features", features, valid, minimum=1)
    return entropy_rank(torch.linalg.svdvals(rows))


def centred_spectrum(rows: Tensor) -> Tensor:
    """Eigenvalues of the scatter of rows, from the smaller of the two matrices that have them."""
    centred = rows - rows.mean(dim=0)
    matrix = centred.T @ centred if rows.shape[1] <= len(rows) else centred @ centred.T
    return scatter_spectrum(matrix, rows.square().sum())
