"""VICReg: features of two views agree, every dimension varies, and no two say the same."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributed import ProcessGroup

from jepakit._checks import check_number, check_same_shape
from jepakit._distributed import sum_over_ranks
from jepakit._precision import full_precision
from jepakit._rows import centre, check_rows, to_rows
from jepakit.losses.masked import masked_mse

__all__ = ["covariance_loss", "variance_loss", "vicreg"]


def vicreg(
    first: Float[Tensor, "*batch d"],
    second: Float[Tensor, "*batch d"],
    valid: Bool[Tensor, "*batch"] | None = None,
    *,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
    target_std: float = 1.0,
    eps: float = 1e-4,
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    r"""Variance, invariance and covariance of two views of the same samples.

    $$L = \lambda\, \frac{1}{n d} \sum_{ij} (x_{ij} - y_{ij})^2
        + \mu\, \frac{v(x) + v(y)}{2} + \nu\, \big(c(x) + c(y)\big)$$

    with $v$ = `variance_loss` and $c$ = `covariance_loss`. Row $i$ of `first` and row $i$ of
    `second` are the same sample: views, or prediction and target. C-JEPA is this added to the
    masked loss of I-JEPA, on features pooled over patches.

    Args:
        first: Features of one view: pooled `[b d]`, or tokens `[b n d]`, of which every valid one
            is a row of the same statistics.
        second: Features of the other view, row by row.
        valid: True where a row counts. All rows if None.
        invariance_weight: $\lambda$, not below 0.
        variance_weight: $\mu$, not below 0.
        covariance_weight: $\nu$, not below 0.
        target_std: As in `variance_loss`.
        eps: As in `variance_loss`.
        process_group: As in `variance_loss`.

    Raises:
        TypeError: As in `variance_loss`.
        ValueError: As in `variance_loss`, or if a weight is negative or all are 0.

    Example:
        >>> import torch
        >>> x = torch.tensor([[2.0, 2.0], [-2.0, 2.0], [2.0, -2.0], [-2.0, -2.0]])
        >>> vicreg(x, x)  # spread, not correlated, and equal in both views
        tensor(0.)
        >>> round(vicreg(0 * x, 0 * x).item(), 2)  # collapsed: 25 x (1 - sqrt(1e-4))
        24.75

    Source:
        VICReg (arXiv:2105.04906), in the form of its published code, from which the weights 25, 25,
        1 come: the invariance is a mean over elements (the paper's text sums over dimensions), and
        the variance is the mean of both views (the paper adds them: `variance_weight=50`), while
        the covariance is their sum. C-JEPA: arXiv:2410.19560.
    """
    check_same_shape("second", second, "first", first)
    check_rows("first", first, valid, process_group, minimum=2)
    weights = (invariance_weight, variance_weight, covariance_weight)
    for name, weight in zip(("invariance", "variance", "covariance"), weights, strict=True):
        check_number(f"{name}_weight", weight, minimum=0)
    if not any(weights):
        raise ValueError(
            "invariance_weight, variance_weight, covariance_weight: at least one must be above 0"
        )
    if valid is None:
        valid = torch.ones(first.shape[:-1], dtype=torch.bool, device=first.device)
    loss = invariance_weight * masked_mse(first, second, valid, process_group=process_group)
    for features in (first, second):
        variance = variance_loss(
            features, valid, target_std=target_std, eps=eps, process_group=process_group
        )
        covariance = covariance_loss(features, valid, process_group=process_group)
        loss = loss + variance_weight / 2 * variance + covariance_weight * covariance
    return loss


def variance_loss(
    features: Float[Tensor, "*batch d"],
    valid: Bool[Tensor, "*batch"] | None = None,
    *,
    target_std: float = 1.0,
    eps: float = 1e-4,
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    r"""How much the standard deviations of the dimensions fall short of a target.

    $$v(x) = \frac{1}{d} \sum_{j=1}^{d} \max\Big(0,\ \gamma -
        \sqrt{\frac{1}{n - 1} \sum_i (x_{ij} - \bar x_j)^2 + \epsilon}\Big)$$

    Computed in float32. Where only one row is valid in the end there is no variance: the loss is
    0, with gradients of 0. Constant features give the largest value and, by symmetry, no gradient;
    the smallest difference between them gives one that drives them apart.

    Args:
        features: Feature vectors: pooled `[b d]`, or tokens `[b n d]`, of which every valid one is
            a row.
        valid: True where a row counts. All rows if None.
        target_std: $\gamma$, in units of the features; above 0.
        eps: Added to the variance, so that its root has a bounded gradient; above 0.
        process_group: Compute on the joined rows of all ranks of this group: each rank returns the
            global value, with a gradient scaled so that DDP's averaging gives the gradient of one
            big batch, also when counts differ. Every rank must call. First derivatives only: of a
            second one, as a gradient penalty takes, what passes between ranks is missing, and the
            mean's part (the gradient through the mean is 0 only to first order).

    Raises:
        TypeError: If `features` is not floating point, `valid` not bool, or `process_group` not a
            process group.
        ValueError: If shapes do not fit (nothing is broadcast), there are fewer than 2 rows and no
            other rank to have more, or `target_std` or `eps` is not above 0.

    Example:
        >>> import torch
        >>> variance_loss(torch.tensor([[0.0, 0.5], [2.0, 0.5]]), eps=0.01)
        tensor(0.4500)

    Source:
        VICReg (arXiv:2105.04906), no difference: unbiased variance, `eps` inside the root.
    """
    check_rows("features", features, valid, process_group, minimum=2)
    check_number("target_std", target_std, positive=True)
    check_number("eps", eps, positive=True)
    with full_precision(features):
        centred, count = centre(to_rows(features, valid), process_group)
        squares = sum_over_ranks(centred.square().sum(dim=0), process_group)
        std = (squares / (count - 1).clamp(min=1) + eps).sqrt()
        loss = F.relu(target_std - std).mean()
        return torch.where(count > 1, loss, torch.zeros_like(loss))


def covariance_loss(
    features: Float[Tensor, "*batch d"],
    valid: Bool[Tensor, "*batch"] | None = None,
    *,
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    r"""Squared covariances between different dimensions, summed and divided by the width.

    $$c(x) = \frac{1}{d} \sum_{j \ne k} C_{jk}^2, \qquad
        C = \frac{1}{n - 1} \sum_i (x_i - \bar x)(x_i - \bar x)^\top$$

    Zero for constant features and small for small ones: alone it prevents no collapse. Computed in
    float32; 0 where only one row is valid in the end.

    Args:
        features: Feature vectors, as in `variance_loss`.
        valid: True where a row counts. All rows if None.
        process_group: As in `variance_loss`.

    Raises:
        TypeError: As in `variance_loss`.
        ValueError: If shapes do not fit, or there are fewer than 2 rows and no other rank to have
            more.

    Example:
        >>> import torch
        >>> covariance_loss(torch.tensor([[1.0, 2.0], [-1.0, -2.0]]))  # (4^2 + 4^2) / 2
        tensor(16.)

    Source:
        VICReg (arXiv:2105.04906), no difference: each pair of dimensions enters twice, and the sum
        is divided by $d$ once.
    """
    check_rows("features", features, valid, process_group, minimum=2)
    with full_precision(features):
        centred, count = centre(to_rows(features, valid), process_group)
        products = sum_over_ranks(centred.T @ centred, process_group)
        # One half of the symmetric matrix: the sum of all entries minus the diagonal would cancel.
        above = (products / (count - 1).clamp(min=1)).triu(diagonal=1)
        return 2 * above.square().sum() / features.shape[-1]
