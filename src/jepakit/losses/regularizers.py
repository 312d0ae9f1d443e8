"""Regularisers against collapse, over the rows of a batch: VICReg, Barlow Twins, KoLeo, invariance.

Features are `[b d]`, or `[b n d]` with every valid token as a row. Computed in float32. Over a
process group each is a function of second moments or of gathered rows of the joined batch.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributed import ProcessGroup

from jepakit._checks import as_int, as_number, check_floating, check_rows, check_same_shape
from jepakit._distributed import gather_rows, row_counts, rows_before, sum_over_ranks
from jepakit._precision import float32_or_wider, full_precision
from jepakit._rows import centred_rows, everything_valid, to_rows, zero_invalid
from jepakit.losses.masked import masked_mse, reduce_masked

__all__ = ["barlow", "covariance_loss", "invariance_loss", "koleo", "variance_loss", "vicreg"]

# Rows whose nearest neighbours are searched at once: memory is this many times all rows.
_NEIGHBOUR_CHUNK = 1024


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
    `second` belong to the same sample: views, or prediction and target. C-JEPA adds this to the
    masked loss of I-JEPA, on features pooled over patches.

    Args:
        first: Features of one view: `[b d]`, or `[b n d]` with every valid token as a row.
        second: Features of the other view, row by row.
        valid: True where a row counts. All rows if None.
        invariance_weight: $\lambda$, at least 0.
        variance_weight: $\mu$, at least 0.
        covariance_weight: $\nu$, at least 0. Not all three are 0.
        target_std, eps, process_group: As in `variance_loss`.

    Raises:
        ValueError: If shapes do not fit (nothing is broadcast), there are fewer than 2 rows and no
            `process_group`, or all weights are 0.

    Example:
        >>> import torch
        >>> x = torch.tensor([[2.0, 2.0], [-2.0, 2.0], [2.0, -2.0], [-2.0, -2.0]])
        >>> vicreg(x, x)  # large variance, no correlation, both views equal
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
    invariance_weight = as_number("invariance_weight", invariance_weight, minimum=0)
    variance_weight = as_number("variance_weight", variance_weight, minimum=0)
    covariance_weight = as_number("covariance_weight", covariance_weight, minimum=0)
    if not (invariance_weight or variance_weight or covariance_weight):
        raise ValueError("invariance_weight, variance_weight, covariance_weight: must not all be 0")
    if valid is None:
        valid = everything_valid(first)
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
    r"""Hinge loss on the std of each dimension: the shortfall from a target std.

    $$v(x) = \frac{1}{d} \sum_{j=1}^{d} \max\Big(0,\ \gamma -
        \sqrt{\frac{1}{n - 1} \sum_i (x_{ij} - \bar x_j)^2 + \epsilon}\Big)$$

    With a single valid row there is no variance: the loss is 0, with gradients of 0. Constant
    features give the largest value and, by symmetry, no gradient; the smallest difference between
    them gives one that separates them.

    Args:
        features: `[b d]`, or `[b n d]` with every valid token as a row.
        valid: True where a row counts. All rows if None.
        target_std: $\gamma$, in units of the features; above 0.
        eps: Added to the variance, so that its root has a bounded gradient; above 0.
        process_group: Compute on the joined rows of all ranks of this group, with value and
            gradient as in `masked_mse`. First derivatives only: a second one, as in a gradient
            penalty, lacks the part that passes between ranks and the part through the mean.

    Raises:
        TypeError: If the features are not floating point.

    Example:
        >>> import torch
        >>> variance_loss(torch.tensor([[0.0, 0.5], [2.0, 0.5]]), eps=0.01)
        tensor(0.4500)

    Source:
        VICReg (arXiv:2105.04906), no difference: unbiased variance, `eps` inside the root.
    """
    target_std = as_number("target_std", target_std, positive=True)
    eps = as_number("eps", eps, positive=True)
    check_floating("features", features)
    with full_precision(features):
        centred, count = centred_rows("features", features, valid, process_group)
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

    Zero for constant features and small for small ones: alone it prevents no collapse. With a
    single valid row it is 0.

    Args:
        features, valid, process_group: As in `variance_loss`.

    Raises:
        TypeError: If the features are not floating point.

    Example:
        >>> import torch
        >>> covariance_loss(torch.tensor([[1.0, 2.0], [-1.0, -2.0]]))  # (4^2 + 4^2) / 2
        tensor(16.)

    Source:
        VICReg (arXiv:2105.04906), no difference: the sum is divided by $d$ once.
    """
    check_floating("features", features)
    with full_precision(features):
        centred, count = centred_rows("features", features, valid, process_group)
        products = sum_over_ranks(centred.T @ centred, process_group)
        # One triangle of the symmetric matrix: the sum of all squares minus those of the diagonal
        # would cancel where variances are large.
        above = (products / (count - 1).clamp(min=1)).triu(diagonal=1)
        return 2 * above.square().sum() / features.shape[-1]


def barlow(
    first: Float[Tensor, "*batch d"],
    second: Float[Tensor, "*batch d"],
    valid: Bool[Tensor, "*batch"] | None = None,
    *,
    off_diagonal_weight: float = 0.0051,
    eps: float = 1e-5,
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    r"""Squared distance of the cross-correlation of two views from the identity (Barlow Twins).

    $$L = \sum_{j} (1 - C_{jj})^2 + \lambda \sum_{j \ne k} C_{jk}^2, \qquad
        C_{jk} = \frac{\sum_i (x_{ij} - \bar x_j)(y_{ik} - \bar y_k) / n}
        {\sqrt{\mathrm{var}(x_j) + \epsilon} \sqrt{\mathrm{var}(y_k) + \epsilon}}$$

    Correlations do not depend on the scale of the features except through `eps`, so shrinking
    features raise the loss only once their variance is near `eps`. Constant features give $d$ and,
    by symmetry, no gradient. The loss grows with the width, as in the paper.

    Args:
        first, second, valid: As in `vicreg`.
        off_diagonal_weight: $\lambda$, at least 0.
        eps: Added to the (biased) variances; above 0.
        process_group: As in `variance_loss`.

    Raises:
        ValueError: As in `vicreg`.

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
    off_diagonal_weight = as_number("off_diagonal_weight", off_diagonal_weight, minimum=0)
    eps = as_number("eps", eps, positive=True)
    with full_precision(first):
        x, count = centred_rows("first", first, valid, process_group)
        y, _ = centred_rows("second", second, valid, process_group)
        dtype = torch.promote_types(x.dtype, y.dtype)
        x, y = x.to(dtype), y.to(dtype)
        n = count.clamp(min=1).to(dtype)
        squares = torch.stack([x.square().sum(dim=0), y.square().sum(dim=0)])
        x_std, y_std = (sum_over_ranks(squares, process_group) / n + eps).sqrt().unbind()
        products = sum_over_ranks(x.T @ y, process_group) / n
        correlation = products / (x_std.unsqueeze(1) * y_std)
        diagonal = correlation.diagonal()
        on_diagonal = torch.eye(len(diagonal), dtype=torch.bool, device=first.device)
        off_diagonal = correlation.masked_fill(on_diagonal, 0).square().sum()
        loss = (1 - diagonal).square().sum() + off_diagonal_weight * off_diagonal
        return torch.where(count > 1, loss, torch.zeros_like(loss))


def koleo(
    features: Float[Tensor, "*batch d"],
    valid: Bool[Tensor, "*batch"] | None = None,
    *,
    eps: float = 1e-8,
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    r"""Negative mean log distance to the nearest neighbour on the unit sphere (KoLeo).

    $$L = -\frac{1}{n} \sum_{i=1}^{n} \log \sqrt{\rho_i^2 + \epsilon^2}, \qquad
        \rho_i = \min_{j \ne i} \Big\| \frac{x_i}{\|x_i\|} - \frac{x_j}{\|x_j\|} \Big\|$$

    The loss may be negative. Its gradient grows as one over the distance to the neighbour. Samples
    of exactly one direction have a distance of 0 and no gradient. With a single valid row it is 0.

    Args:
        features, valid: As in `variance_loss`.
        eps: Smallest distance, in radii of the sphere; above 0.
        process_group: Search among the rows of all ranks of this group, as in `variance_loss`.
            Batch sizes may differ between ranks, which costs a host synchronisation. Every rank
            must call and go backward.

    Raises:
        ValueError: As in `vicreg`.

    Example:
        >>> import torch
        >>> koleo(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [0.0, -4.0]]))  # -log sqrt(2)
        tensor(-0.3466)

    Source:
        Sablayrolles et al. (arXiv:1806.03198), with the unit length that DINOv2 (arXiv:2304.07193)
        gives the features. DINOv2 searches within one rank; here it is the joined batch. `eps`
        stands in the root, so that equal rows have a gradient of 0.
    """
    check_rows("features", features, valid, process_group, minimum=2)
    eps = as_number("eps", eps, positive=True)
    with full_precision(features):
        rows = to_rows(features, valid)
        units, own_valid = F.normalize(rows.values, dim=-1, eps=1e-6), rows.valid.squeeze(1)
        counts = row_counts(units, process_group)
        all_units = gather_rows(units, counts, process_group)
        all_valid = gather_rows(own_valid, counts, process_group)
        first = rows_before(counts, process_group)
        nearest = _nearest_others(units.detach(), all_units.detach(), all_valid, first)
        gaps = units - all_units[nearest]
        terms = -(gaps.square().sum(dim=1) + eps**2).log() / 2
        terms = terms.masked_fill(~own_valid, 0)
        count = all_valid.sum()
        loss = sum_over_ranks(terms.sum(), process_group) / count.clamp(min=1)
        return torch.where(count > 1, loss, torch.zeros_like(loss))


def _nearest_others(rows: Tensor, all_rows: Tensor, all_valid: Tensor, first: int) -> Tensor:
    """Index in `all_rows` of each row's nearest other valid row; `rows[0]` is `all_rows[first]`."""
    if not len(all_rows):
        return torch.zeros(0, dtype=torch.long, device=rows.device)
    # Distances come from |a|^2 + |b|^2 - 2 a b, which loses the difference of close vectors that
    # are far from 0; around the mean of all rows it is kept.
    count = all_valid.sum().clamp(min=1)
    mean = zero_invalid(all_rows, all_valid).sum(dim=0) / count
    rows, all_rows = rows - mean, all_rows - mean
    squares = all_rows.square().sum(dim=1).masked_fill(~all_valid, float("inf"))
    columns = torch.arange(len(all_rows), device=rows.device)
    nearest = []
    for start in range(0, max(1, len(rows)), _NEIGHBOUR_CHUNK):  # linear memory
        chunk = rows[start : start + _NEIGHBOUR_CHUNK]
        # Without the row's own square, which is the same for all candidates.
        distances = squares - 2 * chunk @ all_rows.T
        own = columns[first + start : first + start + len(chunk)].unsqueeze(1)
        nearest.append(distances.masked_fill(columns == own, float("inf")).argmin(dim=1))
    return torch.cat(nearest)


def invariance_loss(
    views: Float[Tensor, "v *batch d"],
    valid: Bool[Tensor, "v *batch"] | None = None,
    *,
    num_global_views: int | None = None,
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    r"""Mean squared distance of every view to the centre of its sample.

    $$L = \frac{1}{V n d} \sum_{v=1}^{V} \sum_{i=1}^{n} \|x_{vi} - c_i\|^2, \qquad
        c_i = \frac{1}{V_g} \sum_{v=1}^{V_g} x_{vi}$$

    Every collapse minimises it: add a regulariser. The gradient flows through the centre too.

    Args:
        views: Features of $V$ views, `[v b d]` or `[v b n d]`, the global views first.
        valid: True where a view's vector counts. A centre is the mean of its valid views, and
            vectors without a centre do not count. All if None.
        num_global_views: $V_g$, the number of views that make the centre. All if None.
        process_group: Take the mean over all ranks of this group, as in `masked_mse`.

    Raises:
        ValueError: If shapes do not fit, or there are fewer than 2 views.

    Example:
        >>> import torch
        >>> invariance_loss(torch.tensor([[[1.0]], [[3.0]]]))  # both 1 away from their centre, 2
        tensor(1.)

    Source:
        The prediction term of LeJEPA (arXiv:2511.08544). With two views and both in the centre it
        is a quarter of the mean squared difference that `vicreg` takes.
    """
    if isinstance(views, (list, tuple)):
        raise TypeError("views: must be a torch.Tensor; torch.stack makes one of a list")
    check_rows("views", views, valid, process_group)
    num_views = len(views)
    if views.dim() < 3 or num_views < 2:
        raise ValueError(f"views {tuple(views.shape)}: must have the shape [v, *batch, d], v >= 2")
    if num_global_views is not None:
        num_global_views = as_int(
            "num_global_views", num_global_views, minimum=1, maximum=num_views
        )
    if valid is None:
        valid = everything_valid(views)
    with full_precision(views):
        x = zero_invalid(float32_or_wider(views), valid)
        counts = valid[:num_global_views].sum(dim=0)
        centres = x[:num_global_views].sum(dim=0) / counts.clamp(min=1).unsqueeze(-1)
        counted = valid & (counts > 0)
        squares = zero_invalid(x - centres, counted).square()
        return reduce_masked(squares, counted, "mean", process_group)
