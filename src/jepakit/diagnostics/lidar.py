"""LiDAR: how many directions tell objects apart rather than views of one object."""

import torch
from jaxtyping import Float
from torch import Tensor

from jepakit._checks import check_floating, check_number
from jepakit.diagnostics._rows import valid_rows
from jepakit.diagnostics._spectrum import NO_VARIANCE, entropy_rank

__all__ = ["check_groups", "discriminant_rank", "lidar"]


def lidar(features: Float[Tensor, "n q d"], *, ridge: float = 1e-4) -> Float[Tensor, ""]:
    r"""Effective rank of the linear discriminant between objects, of each of which there are views.

    $$\Sigma = \Sigma_w^{-1/2}\, \Sigma_b\, \Sigma_w^{-1/2}, \qquad
        \Sigma_b = \frac{1}{n} \sum_i (\mu_i - \mu)(\mu_i - \mu)^\top, \qquad
        \Sigma_w = \frac{1}{n q} \sum_{ij} (x_{ij} - \mu_i)(x_{ij} - \mu_i)^\top + \delta I$$

    and of the eigenvalues of $\Sigma$ the exponential of the entropy. Directions in which views of
    one object differ as much as objects do (noise, nuisances) hardly count, which is what
    `effective_rank` cannot tell. At most the smaller of `d` and `n - 1`; 0 where all objects have
    the same mean. Computed in float64, without a gradient; waits for the device.

    Args:
        features: `q` views (augmentations, crops, masks) of each of `n` objects. The paper takes
            1,000 objects with 50 views each. Classes with samples will do too.
        ridge: $\delta$, above 0, in units of the features squared; it should be small beside the
            variance within objects, and is what counts where there is none.

    Returns:
        LiDAR in dimensions, a float64 scalar.

    Raises:
        TypeError: If `features` is not floating point.
        ValueError: If it is not `[n q d]` with at least 2 objects and 2 views, values are not
            finite, or `ridge` is not above 0.

    Example:
        >>> import torch
        >>> centres = torch.tensor([[9.0, 9.0], [9.0, -9.0], [-9.0, 9.0], [-9.0, -9.0]])
        >>> views = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> round(float(lidar(centres[:, None] + views)), 3)
        2.0
        >>> round(float(lidar(centres[:, None] * torch.tensor([1.0, 0.0]) + views)), 3)
        1.0

    Source:
        LiDAR (arXiv:2312.04000). Its logarithm's 1e-7 is left out, as in `rankme`.
    """
    check_groups(features, objects=2)
    check_number("ridge", ridge, positive=True)
    n, q, d = features.shape
    rows = valid_rows("features", features, None, minimum=4).view(n, q, d)
    means = rows.mean(dim=1)
    within = (rows - means[:, None]).flatten(0, 1)
    between = means - means.mean(dim=0)
    return discriminant_rank(
        between.T @ between / n, within.T @ within / (n * q), ridge, means.square().sum() / n
    )


def check_groups(features: Tensor, *, objects: int) -> None:
    """Raise unless `features` are `[n q d]` with views of so many objects."""
    check_floating("features", features)
    shape = tuple(features.shape)
    if len(shape) != 3 or shape[0] < objects or shape[1] < 2 or shape[2] == 0:
        raise ValueError(
            f"features {shape}: must have the shape [n, q, d] with n >= {objects} objects and "
            "q >= 2 views of each"
        )


def discriminant_rank(between: Tensor, within: Tensor, ridge: float, mean_square: Tensor) -> Tensor:
    """Effective rank of the covariance between objects, in units of that within them.

    `mean_square` is that of the objects' means around 0: with it, rounding is told from variance.
    """
    varies = between.diagonal().sum() > NO_VARIANCE * mean_square
    identity = torch.eye(len(within), dtype=within.dtype, device=within.device)
    factor = torch.linalg.cholesky(within + ridge * identity)
    # Any root of the inverse gives the same eigenvalues.
    half = torch.linalg.solve_triangular(factor, between, upper=False)
    whole = torch.linalg.solve_triangular(factor, half.T, upper=False)
    spectrum = torch.linalg.eigvalsh((whole + whole.T) / 2).clamp(min=0)
    return entropy_rank(torch.where(varies, spectrum, torch.zeros_like(spectrum)))
