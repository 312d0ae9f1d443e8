"""Diagnostics of the spectrum: eigenvalues of a covariance, or singular values of the features.

All compute in float64 and without a gradient. Too few valid rows, or one that is not finite, raise
a `ValueError`. The solvers need a host synchronisation: call these functions every so many steps,
not in a compiled forward.
"""

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor

from jepakit._checks import as_int, as_number, check_floating
from jepakit.diagnostics._valid_rows import valid_rows

__all__ = ["alpha_req", "effective_rank", "isotropy", "lidar", "rankme"]

# Features that are constant up to float32 rounding vary by about (1e-7)^2 of their mean square.
NO_VARIANCE = 1e-12
# Eigenvalues below this fraction of the largest one are rounding.
_ROUNDING = 1e-13


def effective_rank(
    features: Float[Tensor, "*batch d"], valid: Bool[Tensor, "*batch"] | None = None
) -> Float[Tensor, ""]:
    r"""Exponential of the entropy of the spectrum of the centred covariance.

    $$\mathrm{erank} = \exp\Big(-\sum_i p_i \log p_i\Big), \qquad
        p_i = \lambda_i \Big/ \sum_j \lambda_j, \qquad
        \lambda = \mathrm{eig}\big(\mathrm{cov}(x)\big)$$

    It lies between 1 (all variance along one line) and the smaller of `d` and the number of rows
    minus 1, and does not change with scale, shift or rotation. Features without variance give 0,
    so that a full collapse is not mistaken for a rank of 1: with a total variance of at most
    $10^{-12}$ of the mean square, which is what rounding leaves in constant float32 features.

    Computed from the smaller of the covariance (`d` x `d`) and the Gram matrix (rows x rows), with
    a host synchronisation: call it every so many steps, not in a compiled forward.

    Args:
        features: Feature vectors; all axes but the last are rows.
        valid: True where a row counts. All rows if None.

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
        where a large mean hides everything else.
    """
    return entropy_rank(_centred_spectrum(valid_rows("features", features, valid, minimum=2)))


def rankme(
    features: Float[Tensor, "*batch d"], valid: Bool[Tensor, "*batch"] | None = None
) -> Float[Tensor, ""]:
    r"""Exponential of the entropy of the singular values of the uncentred features.

    $$\mathrm{RankMe} = \exp\Big(-\sum_k p_k \log p_k\Big), \qquad
        p_k = \sigma_k \Big/ \sum_j \sigma_j, \qquad \sigma = \mathrm{svd}(x)$$

    Use it to compare with published numbers, and `effective_rank` to monitor a run. Singular values
    are roots of eigenvalues, so small directions count for more and the number is larger, often by
    far. And the mean is not subtracted: it adds one direction, constant features have a RankMe of 1
    instead of 0, and a large mean hides all other directions. Only zeros give 0.

    Args:
        features: Feature vectors; all axes but the last are rows. Their number bounds the result;
            the paper takes 25,600.
        valid: True where a row counts. All rows if None.

    Example:
        >>> import torch
        >>> x = torch.tensor([[3.0, 0.0], [0.0, 1.0]])  # singular values 3 and 1
        >>> round(float(rankme(x)), 4)  # exp(0.75 log(4 / 3) + 0.25 log 4)
        1.7548
        >>> round(float(rankme(torch.ones(4, 2))), 4)
        1.0

    Source:
        RankMe (arXiv:2210.02885). It adds 1e-7 to each $p_k$ before the logarithm; here
        $0 \log 0 = 0$ instead.
    """
    return entropy_rank(torch.linalg.svdvals(valid_rows("features", features, valid, minimum=1)))


def alpha_req(
    features: Float[Tensor, "*batch d"],
    valid: Bool[Tensor, "*batch"] | None = None,
    *,
    first: int = 1,
    last: int | None = None,
) -> Float[Tensor, ""]:
    r"""Exponent of the power law that the spectrum of the covariance follows.

    $$\lambda_i \propto i^{-\alpha}, \qquad \lambda_1 \ge \lambda_2 \ge \dots$$

    by least squares of $\log \lambda_i$ on $\log i$ between two indices. 0 is a flat spectrum. The
    paper finds that features transfer best around 1; far above, a few directions hold all variance.
    Eigenvalues that are rounding, below $10^{-13}$ of the largest, are left out. With fewer rows
    than dimensions the tail of the spectrum depends on the sample size, so choose `last` well below
    the number of rows. NaN where fewer than two eigenvalues are left, as in a collapse.

    Args:
        features, valid: As in `effective_rank`.
        first: First eigenvalue of the fit, counted from 1.
        last: Last eigenvalue of the fit; the last one available if None.

    Raises:
        ValueError: If not `1 <= first < last <= d`.

    Example:
        >>> import torch
        >>> noise = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
        >>> whitened, _ = torch.linalg.qr(noise - noise.mean(dim=0))
        >>> round(float(alpha_req(whitened * torch.arange(1.0, 17.0) ** -0.75)), 3)
        1.5

    Source:
        alpha-ReQ (Agrawal et al., NeurIPS 2022). As there, the covariance is centred, and the slope
        is that of the logarithms. Published fits leave out the first eigenvalues (`first=11` and
        the like), and some weight the points by 1 / i; here all have equal weight.
    """
    first = as_int("first", first, minimum=1)
    last = None if last is None else as_int("last", last, minimum=1)
    check_floating("features", features)
    dim = features.shape[-1] if features.dim() else 0
    if not first < (dim if last is None else last) <= dim:
        raise ValueError(
            f"{first=}, {last=}: must be 1 <= first < last <= d, the width {dim} of features"
        )
    rows = valid_rows("features", features, valid, minimum=2)
    return power_law_exponent(_centred_spectrum(rows), first, last)


def isotropy(
    features: Float[Tensor, "*batch d"], valid: Bool[Tensor, "*batch"] | None = None
) -> Float[Tensor, ""]:
    r"""IsoScore of the covariance, in [0, 1]: 1 if all directions have equal variance, 0 on a line.

    $$I = \frac{k - 1}{d - 1}, \qquad
        k = \frac{\big(\sum_i \lambda_i\big)^2}{\sum_i \lambda_i^2}
        = \frac{(\mathrm{tr}\, C)^2}{\|C\|_F^2}$$

    $k$ is the participation ratio: `m` directions of equal variance give $k = m$. It needs no
    eigenvalue solver and weights the large eigenvalues; `effective_rank` also depends on a long
    tail. With $n$ rows it is at most $(n - 2) / (d - 1)$. Without variance it is 0; of one
    dimension 1.

    Args:
        features, valid: As in `effective_rank`.

    Example:
        >>> import torch
        >>> corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> float(isotropy(corners)), float(isotropy(corners * torch.tensor([1.0, 0.0])))
        (1.0, 0.0)

    Source:
        IsoScore (Rudman et al., arXiv:2108.07344). Its steps simplify to the formula above.
    """
    rows = valid_rows("features", features, valid, minimum=2)
    centred = rows - rows.mean(dim=0)
    # Rounding errors alone may look isotropic: without variance the result is 0.
    if centred.square().sum() <= NO_VARIANCE * rows.square().sum():
        centred = centred * 0
    return iso_score(centred.T @ centred)


def lidar(features: Float[Tensor, "n q d"], *, ridge: float = 1e-4) -> Float[Tensor, ""]:
    r"""Effective rank of the linear discriminant between objects, given several views of each.

    $$\Sigma = \Sigma_w^{-1/2}\, \Sigma_b\, \Sigma_w^{-1/2}, \qquad
        \Sigma_b = \frac{1}{n} \sum_i (\mu_i - \mu)(\mu_i - \mu)^\top, \qquad
        \Sigma_w = \frac{1}{n q} \sum_{ij} (x_{ij} - \mu_i)(x_{ij} - \mu_i)^\top + \delta I$$

    The result is the exponential of the entropy of the eigenvalues of $\Sigma$. Directions in which
    views of one object differ as much as objects do (noise, nuisances) hardly count, unlike in
    `effective_rank`. At most the smaller of `d` and `n - 1`; 0 where all objects have the same
    mean.

    Args:
        features: `q` views (augmentations, crops, masks) of each of `n` objects. The paper takes
            1,000 objects with 50 views each. Classes with samples work too.
        ridge: $\delta$, above 0, in units of the features squared. Choose it small beside the
            variance within objects; where that is zero, it takes its place.

    Raises:
        ValueError: If there are fewer than 2 objects or 2 views.

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
    check_views(features, min_objects=2)
    ridge = as_number("ridge", ridge, positive=True)
    n, q, _ = features.shape
    rows = valid_rows("features", features, None, minimum=4)
    views = rearrange(rows, "(n q) d -> n q d", n=n)
    means = reduce(views, "n q d -> n d", "mean")
    within = rearrange(views - means[:, None], "n q d -> (n q) d")
    between = means - means.mean(dim=0)
    return discriminant_rank(
        between.T @ between / n, within.T @ within / (n * q), ridge, means.square().sum() / n
    )


# Formulas that the streaming statistics and the collapse monitor share


def entropy_rank(spectrum: Tensor) -> Tensor:
    """Exponential of the entropy of a spectrum; 0 if its sum is 0."""
    total = spectrum.sum()
    p = spectrum / torch.where(total > 0, total, torch.ones_like(total))
    rank = torch.special.entr(p).sum().exp()
    return torch.where(total > 0, rank, torch.zeros_like(rank))


def scatter_spectrum(scatter: Tensor, sum_of_squares: Tensor) -> Tensor:
    """Eigenvalues of a centred scatter matrix, ascending; all 0 if it holds rounding errors only.

    `sum_of_squares` is that of the uncentred features: rounding errors are proportional to it.
    """
    eigenvalues = torch.linalg.eigvalsh(scatter).clamp(min=0)
    has_variance = scatter.diagonal().sum() > NO_VARIANCE * sum_of_squares
    return torch.where(has_variance, eigenvalues, torch.zeros_like(eigenvalues))


def _centred_spectrum(rows: Tensor) -> Tensor:
    """Nonzero eigenvalues of the scatter of rows, from the smaller of scatter and Gram matrix."""
    centred = rows - rows.mean(dim=0)
    matrix = centred.T @ centred if rows.shape[1] <= len(rows) else centred @ centred.T
    return scatter_spectrum(matrix, rows.square().sum())


def power_law_exponent(eigenvalues: Tensor, first: int, last: int | None) -> Tensor:
    """Negative slope of log eigenvalue on log index; NaN with fewer than two eigenvalues.

    `eigenvalues` are ascending; `first` and `last` count from the largest, which has index 1. A
    weight of 0 or 1 chooses among them without a host synchronisation.
    """
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


def iso_score(covariance: Tensor) -> Tensor:
    """IsoScore of a covariance, from its trace and its Frobenius norm; 0 if it is zero."""
    d = covariance.shape[0]
    squares = covariance.square().sum()
    participation = covariance.diagonal().sum().square() / torch.where(
        squares > 0, squares, torch.ones_like(squares)
    )
    score = (participation - 1) / (d - 1) if d > 1 else torch.ones_like(participation)
    return torch.where(squares > 0, score.clamp(0, 1), torch.zeros_like(score))


def check_views(features: Tensor, *, min_objects: int) -> None:
    check_floating("features", features)
    shape = tuple(features.shape)
    if len(shape) != 3 or shape[0] < min_objects or shape[1] < 2 or shape[2] == 0:
        rule = f"must have the shape [n, q, d] with n >= {min_objects} and q >= 2"
        raise ValueError(f"features {shape}: {rule}")


def discriminant_rank(between: Tensor, within: Tensor, ridge: float, mean_square: Tensor) -> Tensor:
    """Effective rank of the covariance between objects, relative to that within them.

    `mean_square` is that of the objects' uncentred means: rounding errors are proportional to it.
    """
    has_variance = between.diagonal().sum() > NO_VARIANCE * mean_square
    identity = torch.eye(len(within), dtype=within.dtype, device=within.device)
    # With W + ridge = L L', the matrix L^-1 B L^-T has the eigenvalues of W^-1/2 B W^-1/2.
    factor = torch.linalg.cholesky(within + ridge * identity)
    left_solved = torch.linalg.solve_triangular(factor, between, upper=False)
    discriminant = torch.linalg.solve_triangular(factor, left_solved.T, upper=False)
    spectrum = torch.linalg.eigvalsh((discriminant + discriminant.T) / 2).clamp(min=0)
    return entropy_rank(torch.where(has_variance, spectrum, torch.zeros_like(spectrum)))
