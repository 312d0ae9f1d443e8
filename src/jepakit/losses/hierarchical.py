"""`hierarchical_loss`: one number from the losses of several levels."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from jepakit._checks import check_number, type_name
from jepakit.losses.masked import masked_smooth_l1

__all__ = ["hierarchical_loss"]


def hierarchical_loss(
    preds: Sequence[Float[Tensor, "..."]],
    targets: Sequence[Float[Tensor, "..."]],
    valids: Sequence[Bool[Tensor, "..."]],
    *,
    weights: Sequence[float]
    | Callable[[Float[Tensor, " levels"]], Float[Tensor, ""]]
    | None = None,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor] = masked_smooth_l1,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    r"""Weighted sum of the losses of several levels, each one mean over its own valid elements.

    $$L = \sum_l w_l \, \ell(p_l, y_l, v_l)$$

    A level counts by its weight alone: not by how many cells it has, nor by how many of them are
    valid. A level without a valid element adds 0.

    Args:
        preds: Predicted features of each level, finest first, such as `[b m n d]`.
        targets: Features to predict, of the same shapes. A gradient flows here too unless they are
            detached, as a teacher's are.
        valids: True where a token counts, `pred.shape[:-1]` each, as in `tokens.valid`.
        weights: None for the plain mean, `1 / len(preds)` each. Numbers, taken as they are (see
            `decay_weights`). Or what turns the vector of losses `[levels]` into the total:
            `UncertaintyWeights` or `SoftOptimalWeights`.
        loss: What compares one level: `loss(pred, target, valid)` to a single number. Options are
            bound with `functools.partial`, a `process_group` too.

    Raises:
        TypeError: If what is given for the levels is no sequence, a weight no number, or `weights`
            neither a sequence nor callable.
        ValueError: If there are no levels, the lengths differ, a weight is negative or not finite,
            all of them are 0, or `loss` or `weights` gives more than a number.

    Returns:
        The total, and the loss of each level, not weighted and detached, as `"level_0"`, `"level_1"`, ...

    Example:
        >>> import torch
        >>> from jepakit import hierarchical_loss, masked_mse
        >>> preds = [torch.ones(1, 16, 2), torch.full((1, 4, 2), 2.0)]
        >>> targets = [torch.zeros_like(pred) for pred in preds]
        >>> valids = [torch.ones(pred.shape[:-1], dtype=torch.bool) for pred in preds]
        >>> total, parts = hierarchical_loss(preds, targets, valids, loss=masked_mse)
        >>> total, parts
        (tensor(2.5000), {'level_0': tensor(1.), 'level_1': tensor(4.)})

    Source:
        jepakit's own.
    """
    for name, given in (("preds", preds), ("targets", targets), ("valids", valids)):
        if not isinstance(given, Sequence):
            raise TypeError(
                f"{name}: must be a sequence with one tensor a level, got {type_name(given)}"
            )
    counts = {"preds": len(preds), "targets": len(targets), "valids": len(valids)}
    if counts["preds"] == 0 or len(set(counts.values())) > 1:
        raise ValueError(
            f"{counts['preds']} preds, {counts['targets']} targets and {counts['valids']} valids: "
            "must be as many of each as there are levels, at least one"
        )
    fixed = weights is None or not callable(weights)
    numbers = _numbers(weights, len(preds)) if fixed else []
    values = []
    for level, (pred, target, valid) in enumerate(zip(preds, targets, valids, strict=True)):
        value = loss(pred, target, valid)
        if value.dim() != 0:
            raise ValueError(
                f"loss: must give a single number, as with reduction='mean', but gives "
                f"{tuple(value.shape)} on level {level}"
            )
        values.append(value)
    if callable(weights):
        total = weights(torch.stack(values))
        if total.dim() != 0:
            raise ValueError(f"weights: must give a single number, but gives {tuple(total.shape)}")
    else:
        # A level of weight 0 is left out, not multiplied: it may be infinite.
        shares = [w * v for w, v in zip(numbers, values, strict=True) if w != 0]
        total = torch.stack(shares).sum()
    return total, {f"level_{level}": value.detach() for level, value in enumerate(values)}


def _numbers(weights: object, num_levels: int) -> list[float]:
    if weights is None:
        return [1 / num_levels] * num_levels
    if isinstance(weights, str) or not isinstance(weights, Sequence):
        raise TypeError(
            f"weights: must be a sequence of numbers, a callable such as UncertaintyWeights, or "
            f"None, got {type_name(weights)}"
        )
    if len(weights) != num_levels:
        raise ValueError(
            f"weights={list(weights)}: must be one for each of the {num_levels} levels"
        )
    for level, weight in enumerate(weights):
        check_number(f"weights[{level}]", weight)
        if weight < 0:
            raise ValueError(f"weights[{level}]={weight}: must be at least 0")
    if math.fsum(weights) == 0:
        raise ValueError(f"weights={list(weights)}: must not all be 0")
    return list(weights)
