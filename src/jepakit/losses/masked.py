"""Regression losses between predicted and target features, over valid tokens only."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributed import ProcessGroup

from jepakit._checks import (
    as_choice,
    as_number,
    check_process_group,
    check_row_mask,
    check_same_shape,
    check_tensor,
)
from jepakit._distributed import sum_over_ranks
from jepakit._precision import float32_or_wider
from jepakit._rows import zero_invalid

__all__ = [
    "masked_cosine",
    "masked_huber",
    "masked_l1",
    "masked_mse",
    "masked_smooth_l1",
    "reduce_masked",
]

Reduction = Literal["mean", "sum", "sample", "none"]

# Norms are clamped here, which bounds the gradient of a cosine: it grows as 1 / norm.
_MIN_NORM = 1e-6


def masked_mse(
    pred: Float[Tensor, "*batch n d"],
    target: Float[Tensor, "*batch n d"],
    valid: Bool[Tensor, "*batch n"],
    *,
    reduction: Reduction = "mean",
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, "..."]:
    r"""Squared error over valid tokens.

    $$\ell_{tj} = (p_{tj} - y_{tj})^2, \qquad
        L = \frac{1}{n_\mathrm{valid}\, d} \sum_{t\ \mathrm{valid}} \sum_{j=1}^{d} \ell_{tj}$$

    Half precision is computed in float32. Padding, NaN included, enters neither value nor gradient.
    If no token is valid, the loss is 0 with gradients of 0.

    Args:
        pred: Predicted features. The first axis is the batch.
        target: Features to predict. A gradient flows here too unless it is detached.
        valid: True where a token counts, as in `tokens.valid`.
        reduction: `"mean"`: one mean over all valid elements of the batch. `"sum"`: their sum; to
            accumulate micro-batches, add these up and divide by the number of valid elements of the
            whole window. `"sample"`: one mean for each sample, shape `[b]`, 0 where no token is
            valid. `"none"`: not reduced, exactly 0 on padding.
        process_group: Take the mean over all ranks of this group: each rank returns the global
            mean, with a gradient scaled so that DDP's averaging gives the gradient of one big
            batch, also when counts differ. Every rank must call. Only with `reduction="mean"`.

    Raises:
        ValueError: If shapes differ (nothing is broadcast), or the batch is empty and there is no
            `process_group`.

    Example:
        >>> import torch
        >>> pred = torch.tensor([[[1.0, 3.0], [5.0, 5.0]]])
        >>> valid = torch.tensor([[True, False]])
        >>> masked_mse(pred, torch.zeros_like(pred), valid)
        tensor(5.)
        >>> masked_mse(pred, torch.zeros_like(pred), valid, reduction="none")
        tensor([[[1., 9.],
                 [0., 0.]]])

    Source:
        I-JEPA (arXiv:2301.08243), whose paper minimises the L2 distance to the teacher's features;
        its published code uses smooth-L1 instead, see `masked_smooth_l1`. The paper sums over a
        block's patches and averages over blocks; here it is one mean over valid elements.
    """
    difference = _checked_difference(pred, target, valid, reduction, process_group)
    return reduce_masked(difference.square(), valid, reduction, process_group)


def masked_l1(
    pred: Float[Tensor, "*batch n d"],
    target: Float[Tensor, "*batch n d"],
    valid: Bool[Tensor, "*batch n"],
    *,
    reduction: Reduction = "mean",
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, "..."]:
    r"""Absolute error over valid tokens.

    $$\ell_{tj} = |p_{tj} - y_{tj}|$$

    Args:
        pred, target, valid, reduction, process_group: As in `masked_mse`.

    Example:
        >>> import torch
        >>> pred = torch.tensor([[[1.0, 3.0], [5.0, 5.0]]])
        >>> masked_l1(pred, torch.zeros_like(pred), torch.tensor([[True, False]]))
        tensor(2.)

    Source:
        V-JEPA (arXiv:2404.08471), whose regression loss is L1. Here it is one mean over valid
        elements, whatever the number of tokens of each sample.
    """
    difference = _checked_difference(pred, target, valid, reduction, process_group)
    return reduce_masked(difference.abs(), valid, reduction, process_group)


def masked_smooth_l1(
    pred: Float[Tensor, "*batch n d"],
    target: Float[Tensor, "*batch n d"],
    valid: Bool[Tensor, "*batch n"],
    *,
    beta: float = 1.0,
    reduction: Reduction = "mean",
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, "..."]:
    r"""Smooth-L1 over valid tokens: squared error near zero, absolute error beyond `beta`.

    $$\ell_{tj} = \begin{cases}
        r^2 / (2\beta) & |r| < \beta \\ |r| - \beta / 2 & \text{else}
        \end{cases}, \qquad r = p_{tj} - y_{tj}$$

    Args:
        beta: Error at which the parabola becomes a line of slope 1, in units of the features;
            above 0.
        pred, target, valid, reduction, process_group: As in `masked_mse`.

    Example:
        >>> import torch
        >>> pred = torch.tensor([[[1.0, 3.0], [5.0, 5.0]]])
        >>> masked_smooth_l1(pred, torch.zeros_like(pred), torch.tensor([[True, False]]))
        tensor(1.5000)

    Source:
        The published code of I-JEPA (arXiv:2301.08243): smooth-L1 with `beta=1` on layer-normed
        targets, which is `normalize_targets(features, "layer")`. The paper says L2, without target
        normalisation, which is `masked_mse`. The code averages over the rows that are left after a
        batch is cut to its shortest sample; here it is one mean over valid elements.
    """
    beta = as_number("beta", beta, positive=True)
    difference = _checked_difference(pred, target, valid, reduction, process_group)
    zeros = difference.new_zeros(()).expand_as(difference)  # no memory, and no broadcast warning
    values = F.smooth_l1_loss(difference, zeros, reduction="none", beta=beta)
    return reduce_masked(values, valid, reduction, process_group)


def masked_huber(
    pred: Float[Tensor, "*batch n d"],
    target: Float[Tensor, "*batch n d"],
    valid: Bool[Tensor, "*batch n"],
    *,
    delta: float = 1.0,
    reduction: Reduction = "mean",
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, "..."]:
    r"""Huber loss over valid tokens: half the squared error, with slope `delta` beyond `delta`.

    $$\ell_{tj} = \begin{cases}
        r^2 / 2 & |r| < \delta \\ \delta (|r| - \delta / 2) & \text{else}
        \end{cases}, \qquad r = p_{tj} - y_{tj}$$

    This is `delta` times `masked_smooth_l1(beta=delta)`: its curvature at 0 is always 1.

    Args:
        delta: Error at which the parabola becomes a line, in units of the features; above 0.
        pred, target, valid, reduction, process_group: As in `masked_mse`.

    Example:
        >>> import torch
        >>> pred = torch.tensor([[[1.0, 3.0], [5.0, 5.0]]])
        >>> masked_huber(pred, torch.zeros_like(pred), torch.tensor([[True, False]]), delta=2.0)
        tensor(2.2500)

    Source:
        Huber, Robust estimation of a location parameter (1964).
    """
    delta = as_number("delta", delta, positive=True)
    difference = _checked_difference(pred, target, valid, reduction, process_group)
    zeros = difference.new_zeros(()).expand_as(difference)
    values = F.huber_loss(difference, zeros, reduction="none", delta=delta)
    return reduce_masked(values, valid, reduction, process_group)


def masked_cosine(
    pred: Float[Tensor, "*batch n d"],
    target: Float[Tensor, "*batch n d"],
    valid: Bool[Tensor, "*batch n"],
    *,
    reduction: Reduction = "mean",
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, "..."]:
    r"""One minus the cosine of the angle between prediction and target, over valid tokens.

    $$\ell_t = 1 - \frac{p_t \cdot y_t}{\max(\|p_t\|, \epsilon)\, \max(\|y_t\|, \epsilon)}, \qquad
        L = \frac{1}{n_\mathrm{valid}} \sum_{t\ \mathrm{valid}} \ell_t, \qquad \epsilon = 10^{-6}$$

    There is one value per token, so the mean does not divide by `d`, and `reduction="none"` gives
    the shape of `valid`. A valid token with a zero vector has a loss of 1.

    Args:
        reduction: As in `masked_mse`, over tokens instead of elements.
        pred, target, valid, process_group: As in `masked_mse`.

    Example:
        >>> import torch
        >>> pred = torch.tensor([[[0.0, 3.0], [5.0, 5.0]]])
        >>> target = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])
        >>> masked_cosine(pred, target, torch.tensor([[True, False]]))
        tensor(1.)

    Source:
        BYOL (arXiv:2006.07733), per token instead of per image and without its factor 2.
    """
    _check(pred, target, valid, reduction, process_group)
    pred = zero_invalid(float32_or_wider(pred), valid)
    target = zero_invalid(float32_or_wider(target), valid)
    cosine = F.cosine_similarity(pred, target, dim=-1, eps=_MIN_NORM)
    values = (1 - cosine).masked_fill(~valid, 0)
    return reduce_masked(values, valid, reduction, process_group)


def reduce_masked(
    values: Tensor, valid: Tensor, reduction: str, process_group: ProcessGroup | None
) -> Tensor:
    """Reduce values of tokens `[*batch n]` or of elements `[*batch n d]`, 0 on padding already."""
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    # Counts are clamped at 1, so that a sum over nothing is 0 with a graph and finite gradients.
    values_per_token = values.shape[-1] if values.dim() > valid.dim() else 1
    if reduction == "sample":
        counts = valid.flatten(1).sum(dim=1).clamp(min=1)
        return values.flatten(1).sum(dim=1) / (counts * values_per_token)
    total, count = values.sum(), valid.sum()
    if process_group is not None:
        sums = torch.stack([total, count.to(total.dtype)])
        total, count = sum_over_ranks(sums, process_group).unbind()
    return total / (count.clamp(min=1) * values_per_token)


def _check(
    pred: Tensor, target: Tensor, valid: Tensor, reduction: str, process_group: ProcessGroup | None
) -> None:
    check_same_shape("target", target, "pred", pred)
    shape = tuple(pred.shape)
    if pred.dim() < 2:
        raise ValueError(f"pred {shape}: must have the shape [*batch, n, d]")
    check_tensor("valid", valid, torch.bool)
    check_row_mask("pred", pred, valid)
    # One rank of several may have no samples: it still takes part in the sums.
    if pred.shape[-1] == 0 or (pred.shape[0] == 0 and process_group is None):
        raise ValueError(f"pred {shape}: must have at least one sample and one feature, is empty")
    as_choice("reduction", reduction, ("mean", "sum", "sample", "none"))
    if reduction == "sample" and pred.dim() < 3:
        raise ValueError(f"reduction='sample': pred {shape} must have a batch axis")
    check_process_group(process_group)
    if process_group is not None and reduction != "mean":
        raise ValueError(
            f"process_group with reduction={reduction!r}: takes effect only with 'mean'"
        )


def _checked_difference(
    pred: Tensor, target: Tensor, valid: Tensor, reduction: str, process_group: ProcessGroup | None
) -> Tensor:
    """Prediction minus target in float32 or wider, 0 on padding."""
    _check(pred, target, valid, reduction, process_group)
    return zero_invalid(float32_or_wider(pred) - float32_or_wider(target), valid)
