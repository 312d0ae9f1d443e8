"""Regression losses between predicted and target features of ragged token sets."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributed import ProcessGroup

from jepakit._checks import check_number
from jepakit._precision import float32_or_wider
from jepakit.losses._reduction import Reduction, check_masked, reduce_masked

__all__ = ["masked_cosine", "masked_huber", "masked_l1", "masked_mse", "masked_smooth_l1"]

# A vector shorter than this has no direction worth a gradient; keeps that gradient bounded.
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

    Half types are computed in float32. What stands at a not-valid place, NaN included, enters
    neither value nor gradient. If nothing is valid, the loss is 0 with gradients of 0.

    Args:
        pred: Predicted features. The first axis is the batch.
        target: Features to predict. A gradient flows here too unless it is detached.
        valid: True where a token counts, as in `tokens.valid`.
        reduction: `"mean"`: one mean over all valid elements of the batch. `"sum"`: their sum; to
            accumulate micro-batches, add these up and divide by the whole window's number of
            valid elements. `"sample"`: each sample's own mean, shape `[b]`, 0 where it has nothing
            valid. `"none"`: not reduced, exactly 0 where not valid.
        process_group: Take the mean over all ranks of this group: each rank returns the global
            mean, with a gradient scaled so that DDP's averaging gives the gradient of one big
            batch, also when counts differ. Every rank must call. Only with `reduction="mean"`.

    Raises:
        TypeError: If `pred` or `target` is not floating point, `valid` not bool, or `process_group`
            not a process group.
        ValueError: If shapes differ (nothing is broadcast), the batch is empty without a group of
            ranks, `reduction` is unknown, or `process_group` comes with another reduction than
            `"mean"`.

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
    check_masked(pred, target, valid, reduction, process_group)
    values = _difference(pred, target, valid).square()
    return reduce_masked(values, valid, reduction, process_group, values_per_token=pred.shape[-1])


def masked_l1(
    pred: Float[Tensor, "*batch n d"],
    target: Float[Tensor, "*batch n d"],
    valid: Bool[Tensor, "*batch n"],
    *,
    reduction: Reduction = "mean",
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, "..."]:
    r"""Absolute error over valid tokens.

    $$\ell_{tj} = |p_{tj} - y_{tj}|, \qquad
        L = \frac{1}{n_\mathrm{valid}\, d} \sum_{t\ \mathrm{valid}} \sum_{j=1}^{d} \ell_{tj}$$

    Args:
        pred: Predicted features, as in `masked_mse`.
        target: Features to predict, as in `masked_mse`.
        valid: True where a token counts, as in `masked_mse`.
        reduction: As in `masked_mse`.
        process_group: As in `masked_mse`.

    Raises:
        TypeError: As in `masked_mse`.
        ValueError: As in `masked_mse`.

    Example:
        >>> import torch
        >>> pred = torch.tensor([[[1.0, 3.0], [5.0, 5.0]]])
        >>> masked_l1(pred, torch.zeros_like(pred), torch.tensor([[True, False]]))
        tensor(2.)

    Source:
        V-JEPA (arXiv:2404.08471), whose regression loss is L1. Here it is one mean over valid
        elements, whatever the number of tokens of each sample.
    """
    check_masked(pred, target, valid, reduction, process_group)
    values = _difference(pred, target, valid).abs()
    return reduce_masked(values, valid, reduction, process_group, values_per_token=pred.shape[-1])


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
        \delta^2 / (2\beta) & |\delta| < \beta \\ |\delta| - \beta / 2 & \text{else}
        \end{cases}, \qquad \delta = p_{tj} - y_{tj}, \qquad
        L = \frac{1}{n_\mathrm{valid}\, d} \sum_{t\ \mathrm{valid}} \sum_{j=1}^{d} \ell_{tj}$$

    Args:
        pred: Predicted features, as in `masked_mse`.
        target: Features to predict, as in `masked_mse`.
        valid: True where a token counts, as in `masked_mse`.
        beta: Where the parabola turns into a line of slope 1, in units of the features; above 0.
        reduction: As in `masked_mse`.
        process_group: As in `masked_mse`.

    Raises:
        TypeError: As in `masked_mse`.
        ValueError: As in `masked_mse`, or if `beta` is not above 0.

    Example:
        >>> import torch
        >>> pred = torch.tensor([[[1.0, 3.0], [5.0, 5.0]]])
        >>> masked_smooth_l1(pred, torch.zeros_like(pred), torch.tensor([[True, False]]))
        tensor(1.5000)

    Source:
        The published code of I-JEPA (arXiv:2301.08243): smooth-L1 with `beta=1` on layer-normed
        targets, which is `normalize_targets(features, "layer")`. The paper says L2, without target
        normalisation, which is `masked_mse`. The code averages over rows that a batch was cut to;
        here it is one mean over valid elements.
    """
    check_masked(pred, target, valid, reduction, process_group)
    check_number("beta", beta, positive=True)
    difference = _difference(pred, target, valid)
    values = F.smooth_l1_loss(difference, _zeros(difference), reduction="none", beta=beta)
    return reduce_masked(values, valid, reduction, process_group, values_per_token=pred.shape[-1])


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
        \end{cases}, \qquad r = p_{tj} - y_{tj}, \qquad
        L = \frac{1}{n_\mathrm{valid}\, d} \sum_{t\ \mathrm{valid}} \sum_{j=1}^{d} \ell_{tj}$$

    This is `delta` times `masked_smooth_l1(beta=delta)`: its curvature at 0 is always 1.

    Args:
        pred: Predicted features, as in `masked_mse`.
        target: Features to predict, as in `masked_mse`.
        valid: True where a token counts, as in `masked_mse`.
        delta: Where the parabola turns into a line, in units of the features; above 0.
        reduction: As in `masked_mse`.
        process_group: As in `masked_mse`.

    Raises:
        TypeError: As in `masked_mse`.
        ValueError: As in `masked_mse`, or if `delta` is not above 0.

    Example:
        >>> import torch
        >>> pred = torch.tensor([[[1.0, 3.0], [5.0, 5.0]]])
        >>> masked_huber(pred, torch.zeros_like(pred), torch.tensor([[True, False]]), delta=2.0)
        tensor(2.2500)

    Source:
        Huber, Robust estimation of a location parameter (1964). Here it is one mean over valid
        elements.
    """
    check_masked(pred, target, valid, reduction, process_group)
    check_number("delta", delta, positive=True)
    difference = _difference(pred, target, valid)
    values = F.huber_loss(difference, _zeros(difference), reduction="none", delta=delta)
    return reduce_masked(values, valid, reduction, process_group, values_per_token=pred.shape[-1])


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
    the shape of `valid`. A valid token with a zero vector costs 1.

    Args:
        pred: Predicted features, as in `masked_mse`.
        target: Features to predict, as in `masked_mse`.
        valid: True where a token counts, as in `masked_mse`.
        reduction: As in `masked_mse`, with tokens in the place of elements.
        process_group: As in `masked_mse`.

    Raises:
        TypeError: As in `masked_mse`.
        ValueError: As in `masked_mse`.

    Example:
        >>> import torch
        >>> pred = torch.tensor([[[0.0, 3.0], [5.0, 5.0]]])
        >>> target = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])
        >>> masked_cosine(pred, target, torch.tensor([[True, False]]))
        tensor(1.)

    Source:
        BYOL (arXiv:2006.07733), per token instead of per image and without its factor 2.
    """
    check_masked(pred, target, valid, reduction, process_group)
    absent = ~valid.unsqueeze(-1)
    cosine = F.cosine_similarity(
        float32_or_wider(pred).masked_fill(absent, 0),
        float32_or_wider(target).masked_fill(absent, 0),
        dim=-1,
        eps=_MIN_NORM,
    )
    values = (1 - cosine).masked_fill(~valid, 0)
    return reduce_masked(values, valid, reduction, process_group, values_per_token=1)


def _difference(pred: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    # Filled before anything is computed from it: a NaN times a gradient of 0 would still be a NaN.
    difference = float32_or_wider(pred) - float32_or_wider(target)
    return difference.masked_fill(~valid.unsqueeze(-1), 0)


def _zeros(difference: Tensor) -> Tensor:
    return torch.zeros((), dtype=difference.dtype, device=difference.device).expand_as(difference)
