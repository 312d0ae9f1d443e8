"""Effective rank: how many directions features really use."""

import torch
from jaxtyping import Float
from torch import Tensor

from jepakit._checks import check_floating

__all__ = ["effective_rank"]

# Features that are constant up to float32 rounding vary by about (1e-7)^2 of their mean square.
_NO_VARIANCE = 1e-12


def effective_rank(features: Float[Tensor, "*batch d"]) -> Float[Tensor, ""]:
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
        features: Feature vectors; all axes but the last are rows. Leave out what is not valid.

    Returns:
        The effective rank in dimensions, a float64 scalar.

    Raises:
        TypeError: If `features` is not floating point.
        ValueError: If there are fewer than 2 rows, no columns, or non-finite values.

    Example:
        >>> import torch
        >>> corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> round(float(effective_rank(corners + 100)), 4)
        2.0
        >>> effective_rank(torch.ones(4, 2))
        tensor(0., dtype=torch.float64)

    Source:
        Roy and Vetterli, The effective rank (EUSIPCO 2007), applied to the eigenvalues of the
        centred covariance. RankMe (arXiv:2210.02885) takes the singular values of the uncentred
        features instead, in which a large mean hides everything else.
    """
    check_floating("features", features)
    shape = tuple(features.shape)
    rows = features.shape[:-1].numel()
    if features.dim() < 2 or rows < 2 or features.shape[-1] == 0:
        raise ValueError(f"features {shape}: must have the shape [*batch, d] with at least 2 rows")
    x = features.detach().reshape(rows, -1)
    if x.device.type == "mps":  # has no float64
        x = x.cpu()
    x = x.double()
    finite = x.isfinite().all(dim=1)
    if not finite.all():
        raise ValueError(
            f"features {shape}: must be finite, but {int((~finite).sum())} of {rows} rows hold NaN "
            "or infinity"
        )
    centred = x - x.mean(dim=0)
    matrix = centred.T @ centred if x.shape[1] <= rows else centred @ centred.T
    eigenvalues = torch.linalg.eigvalsh(matrix).clamp(min=0)
    p = eigenvalues / eigenvalues.sum()
    rank = torch.special.entr(p).sum().exp()
    has_variance = centred.square().mean() > _NO_VARIANCE * x.square().mean()
    return torch.where(has_variance, rank, torch.zeros_like(rank))
