"""Diagnostics of variance and length: per dimension, over time, and relative to a prediction.

All compute in float64 and without a gradient. Too few valid rows, or one that is not finite, raise
a `ValueError`.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from jepakit._checks import check_same_shape
from jepakit.diagnostics._valid_rows import float64, valid_rows

__all__ = ["explained_variance", "feature_std", "mean_predictor_loss", "norm_drift"]


def feature_std(
    features: Float[Tensor, "*batch d"], valid: Bool[Tensor, "*batch"] | None = None
) -> Float[Tensor, " d"]:
    r"""Standard deviation of each dimension over the samples.

    $$s_j = \sqrt{\frac{1}{n - 1} \sum_i (x_{ij} - \bar x_j)^2}$$

    In units of the features. All near 0: full collapse. Some at 0: dead dimensions.

    Args:
        features: Feature vectors; all axes but the last are rows.
        valid: True where a row counts. All rows if None.

    Example:
        >>> import torch
        >>> feature_std(torch.tensor([[1.0, 7.0], [2.0, 7.0], [3.0, 7.0]]))
        tensor([1., 0.], dtype=torch.float64)

    Source:
        SimSiam (arXiv:2011.10566) reports the mean of these for features of unit length; divide the
        features by their norms before to get the same.
    """
    return valid_rows("features", features, valid, minimum=2).std(dim=0)


def norm_drift(
    features: Float[Tensor, "*batch d"],
    reference: Float[Tensor, "*other d"],
    valid: Bool[Tensor, "*batch"] | None = None,
    reference_valid: Bool[Tensor, "*other"] | None = None,
) -> Float[Tensor, ""]:
    r"""Logarithm of the mean feature length relative to a reference.

    $$\log \frac{\frac{1}{n} \sum_i \|x_i\|}{\frac{1}{m} \sum_i \|r_i\|}$$

    0 is no drift, $\pm 0.69$ twice or half as long; minus infinity if all features are 0. A length
    that keeps growing is often the first sign of divergence; a length that falls to 0, of collapse.

    Args:
        features: Feature vectors; all axes but the last are rows.
        reference: Feature vectors to compare with, such as those of step 0 or of the teacher; the
            rows need not correspond, nor their number agree.
        valid, reference_valid: True where a row of either counts. All rows if None.

    Raises:
        ValueError: If the widths differ, or `reference` is all zeros.

    Example:
        >>> import torch
        >>> x = torch.tensor([[3.0, 4.0]])
        >>> round(float(norm_drift(2 * x, x)), 4)
        0.6931
    """
    rows = valid_rows("features", features, valid, minimum=1)
    reference_rows = valid_rows("reference", reference, reference_valid, minimum=1)
    if rows.shape[1] != reference_rows.shape[1]:
        shapes = tuple(reference.shape), tuple(features.shape)
        raise ValueError(f"reference {shapes[0]}: must have the width of features {shapes[1]}")
    reference_norm: Tensor = torch.linalg.vector_norm(reference_rows, dim=1).mean()
    if reference_norm == 0:
        raise ValueError("reference: must not be all zeros")
    norm: Tensor = torch.linalg.vector_norm(rows, dim=1).mean()
    return (norm / reference_norm.to(norm.device)).log()


def mean_predictor_loss(
    target: Float[Tensor, "*batch d"],
    valid: Bool[Tensor, "*batch"] | None = None,
    *,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> Float[Tensor, ""]:
    r"""Loss of a constant predictor that always returns the targets' mean.

    $$\frac{1}{n d} \sum_{ij} (t_{ij} - \bar t_j)^2$$

    Compare it with the training loss: if both fall together, the targets shrink; if the training
    loss is no lower, the predictor has learned nothing.

    Args:
        target: Targets as the loss gets them (after `normalize_targets`).
        valid: As in `feature_std`.
        loss: The training loss, called as `loss(pred, target, valid)`, such as `masked_smooth_l1`.
            The mean square if None.

    Example:
        >>> import torch
        >>> from jepakit import masked_l1
        >>> target = torch.tensor([[0.0, 1.0], [4.0, 1.0]])
        >>> mean_predictor_loss(target)
        tensor(2., dtype=torch.float64)
        >>> mean_predictor_loss(target, loss=masked_l1)
        tensor(1., dtype=torch.float64)
    """
    rows = valid_rows("target", target, valid, minimum=1)
    mean = rows.mean(dim=0)
    if loss is None:
        return (rows - mean).square().mean()
    if valid is None:
        valid = torch.ones(target.shape[:-1], dtype=torch.bool, device=target.device)
    target = float64(target)
    with torch.no_grad():
        return loss(mean.expand_as(target).contiguous(), target, valid.to(target.device))


def explained_variance(
    pred: Float[Tensor, "*batch d"],
    target: Float[Tensor, "*batch d"],
    valid: Bool[Tensor, "*batch"] | None = None,
) -> Float[Tensor, ""]:
    r"""Fraction of the targets' variance that a prediction explains.

    $$1 - \frac{\sum_{ij} (p_{ij} - t_{ij})^2}{\sum_{ij} (t_{ij} - \bar t_j)^2}$$

    1 is a perfect prediction, 0 is no better than the targets' mean, below 0 is worse; NaN where
    the targets have no variance. Unlike the loss, it does not improve when the targets shrink.

    Args:
        pred: Predictions; all axes but the last are rows.
        target: Targets, row by row.
        valid: True where a row counts. All rows if None.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> import torch
        >>> target = torch.tensor([[0.0], [2.0], [4.0]])
        >>> round(float(explained_variance(target + 1, target)), 3)  # 1 - 3 / 8
        0.625
    """
    check_same_shape("pred", pred, "target", target)
    x = valid_rows("pred", pred, valid, minimum=2)
    y = valid_rows("target", target, valid, minimum=2)
    variance = (y - y.mean(dim=0)).square().sum()
    explained = 1 - (x - y).square().sum() / variance
    return torch.where(variance > 0, explained, torch.full_like(explained, torch.nan))
