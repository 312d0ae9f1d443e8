"""What is read off a spectrum: eigenvalues of a covariance, or singular values."""

import torch
from torch import Tensor

__all__ = ["NO_VARIANCE", "entropy_rank", "isotropy_of", "power_law", "scatter_spectrum"]

# Features that are constant up to float32 rounding vary by about (1e-7)^2 of their mean square.
NO_VARIANCE = 1e-12
# Eigenvalues below this share of the largest one are rounding.
_ROUNDING = 1e-13


def scatter_spectrum(scatter: Tensor, sum_of_squares: Tensor) -> Tensor:
    """Eigenvalues of a centred scatter matrix, ascending; all 0 if it is rounding alone.

    `sum_of_squares` is that of the features around 0, with which the rounding is compared.
    """
    eigenvalues = torch.linalg.eigvalsh(scatter).clamp(min=0)
    has_variance = scatter.diagonal().sum() > NO_VARIANCE * sum_of_squares
    return torch.where(has_variance, eigenvalues, torch.zeros_like(eigenvalues))


def entropy_rank(spectrum: Tensor) -> Tensor:
    """Exponential of the entropy of a spectrum; 0 if there is nothing in it."""
    total = spectrum.sum()
    p = spectrum / torch.where(total > 0, total, torch.ones_like(total))
    rank = torch.special.entr(p).sum().exp()
    return torch.where(total > 0, rank, torch.zeros_like(rank))


def isotropy_of(covariance: Tensor) -> Tensor:
    """IsoScore of a covariance, by its trace and its norm; 0 if it has no variance."""
    d = covariance.shape[0]
    squares = covariance.square().sum()
    dimensions = covariance.diagonal().sum().square() / torch.where(
        squares > 0, squares, torch.ones_like(squares)
    )
    score = (dimensions - 1) / (d - 1) if d > 1 else torch.ones_like(dimensions)
    return torch.where(squares > 0, score.clamp(0, 1), torch.zeros_like(score))


def power_law(eigenvalues: Tensor, first: int, last: int | None) -> Tensor:
    """Slope of log eigenvalue against log index, sign turned; NaN with fewer than two values."""
    ordered = eigenvalues.flip(0)
    index = torch.arange(1, len(ordered) + 1, device=ordered.device)
    chosen = (index >= first) & (ordered > _ROUNDING * ordered[0])
    if last is not None:
        chosen &= index <= last
    weight = chosen.to(ordered.dtype)
    count = weight.sum()
    x = index.to(ordered.dtype).log()
    y = torch.where(chosen, ordered, torch.ones_like(ordered)).log()
    x = x - (weight * x).sum() / count
    y = y - (weight * y).sum() / count
    slope = (weight * x * y).sum() / (weight * x.square()).sum()
    return torch.where(count >= 2, -slope, torch.full_like(slope, torch.nan))
