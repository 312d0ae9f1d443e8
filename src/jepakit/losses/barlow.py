"""Barlow Twins: each dimension agrees with itself in the other view, and with no other."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributed import ProcessGroup

from jepakit._checks import check_number, check_same_shape
from jepakit._distributed import sum_over_ranks
from jepakit._precision import full_precision
from jepakit._rows import centre, check_rows, to_rows

__all__ = ["barlow"]


def barlow(
    first: Float[Tensor, "*batch d"],
    second: Float[Tensor, "*batch d"],
    valid: Bool[Tensor, "*batch"] | None = None,
    *,
    off_diagonal_weight: float = 0.0051,
    eps: float = 1e-5,
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    r"""Distance of the cross-correlation of two views from the identity.

    $$L = \sum_{j} (1 - C_{jj})^2 + \lambda \sum_{j \ne k} C_{jk}^2, \qquad
        C_{jk} = \frac{\sum_i (x_{ij} - \bar x_j)(y_{ik} - \bar y_k) / n}
        {\sqrt{\mathrm{var}(x_j) + \epsilon} \sqrt{\mathrm{var}(y_k) + \epsilon}}$$

    Correlations do not see how large features are: only `eps` tells small ones from large, so
    features that shrink are noticed once their variance is near it. Constant features give $d$ and,
    by symmetry, no gradient. It grows with the width, as in the paper.

    Args:
        first: Features of one view: pooled `[b d]`, or tokens `[b n d]`, of which every valid one
            is a row of the same statistics.
        second: Features of the other view, row by row.
        valid: True where a row counts. All rows if None.
        off_diagonal_weight: $\lambda$, not below 0.
        eps: Added to the (biased) variances; above 0.
        process_group: As in `variance_loss`.

    Raises:
        TypeError: As in `variance_loss`.
        ValueError: As in `variance_loss`, or if `off_diagonal_weight` is negative.

    Example:
        >>> import torch
        >>> x = torch.tensor([[2.0, 2.0], [-2.0, 2.0], [2.0, -2.0], [-2.0, -2.0]])
        >>> round(barlow(x, x).item(), 4), round(barlow(x, -x).item(), 4)
        (0.0, 8.0)

    Source:
        Barlow Twins (arXiv:2103.03230), as in its published code: `eps` is that of its batch norm,
        the sums are not divided by the width. Its code sums correlations over ranks and leaves the
        moments to synchronised batch norm; here both are those of the joined batch.
    """
    check_same_shape("second", second, "first", first)
    check_rows("first", first, valid, process_group, minimum=2)
    check_number("off_diagonal_weight", off_diagonal_weight, minimum=0)
    check_number("eps", eps, positive=True)
    with full_precision(first):
        x, count = centre(to_rows(first, valid), process_group)
        y, _ = centre(to_rows(second, valid), process_group)
        dtype = torch.promote_types(x.dtype, y.dtype)
        x, y = x.to(dtype), y.to(dtype)
        n = count.clamp(min=1).to(dtype)
        variances = torch.stack([x.square().sum(dim=0), y.square().sum(dim=0)])
        std = (sum_over_ranks(variances, process_group) / n + eps).sqrt()
        products = sum_over_ranks(x.T @ y, process_group) / n
        correlation = products / (std[0].unsqueeze(1) * std[1])
        diagonal = correlation.diagonal()
        own = torch.eye(len(diagonal), dtype=torch.bool, device=first.device)
        others = correlation.masked_fill(own, 0).square().sum()
        loss = (1 - diagonal).square().sum() + off_diagonal_weight * others
        return torch.where(count > 1, loss, torch.zeros_like(loss))
