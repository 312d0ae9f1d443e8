"""alpha-ReQ: how fast the eigenvalues fall."""

from jaxtyping import Bool, Float
from torch import Tensor

from jepakit._checks import check_int
from jepakit.diagnostics._rows import valid_rows
from jepakit.diagnostics._spectrum import power_law
from jepakit.diagnostics.rank import centred_spectrum

__all__ = ["alpha_req"]


def alpha_req(
    features: Float[Tensor, "*batch d"],
    valid: Bool[Tensor, "*batch"] | None = None,
    *,
    first: int = 1,
    last: int | None = None,
) -> Float[Tensor, ""]:
    r"""Exponent of the power law that the spectrum of the covariance follows.

    $$\lambda_i \propto i^{-\alpha}, \qquad \lambda_1 \ge \lambda_2 \ge \dots$$

    by least squares of $\log \lambda_i$ on $\log i$ between two indices. 0 is a flat spectrum;
    around 1 the paper finds features that transfer best; far above, a few directions hold
    everything. Eigenvalues that are rounding, below $10^{-13}$ of the largest, are left out.
    With fewer rows than dimensions the tail is that of the sample, so choose `last` well below the
    number of rows.

    Args:
        features: Feature vectors; all axes but the last are rows.
        valid: True where a row counts. All rows if None.
        first: First eigenvalue of the fit, counted from 1.
        last: Last eigenvalue of the fit; all that are there if None.

    Returns:
        The exponent, a float64 scalar; NaN where fewer than two eigenvalues are left, as in a
        collapse.

    Raises:
        TypeError: If `features` is not floating point, `valid` not bool, or an index not an int.
        ValueError: If there are fewer than 2 valid rows, no columns, or non-finite values, or not
            `1 <= first < last <= d`.

    Example:
        >>> import torch
        >>> noise = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
        >>> whitened, _ = torch.linalg.qr(noise - noise.mean(dim=0))
        >>> round(float(alpha_req(whitened * torch.arange(1.0, 17.0) ** -0.75)), 3)
        1.5

    Source:
        alpha-ReQ (Agrawal et al., NeurIPS 2022). Like there, the covariance is centred, and the
        slope is that of the logarithms. Published fits leave out the first eigenvalues (`first=11`
        and the like), and some weigh the points by 1 / i; here all count alike.
    """
    check_range(features.shape[-1] if features.dim() else 0, first, last)
    rows = valid_rows("features", features, valid, minimum=2)
    return power_law(centred_spectrum(rows), first, last)


def check_range(dim: int, first: int, last: int | None) -> None:
    """Raise unless `1 <= first < last <= dim`."""
    check_int("first", first, minimum=1)
    if last is not None:
        check_int("last", last, minimum=1)
    if not first < (dim if last is None else last) <= dim:
        raise ValueError(
            f"first={first}, last={last}: must be 1 <= first < last <= d, and d is {dim}"
        )
