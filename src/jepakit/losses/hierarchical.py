"""Losses of several pyramid levels as one, and the weights of the levels."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from jepakit._checks import (
    as_choice,
    as_fraction,
    as_int,
    as_number,
    as_numbers,
    check_floating,
    store_fields,
    type_name,
)
from jepakit.losses.masked import masked_smooth_l1

__all__ = ["SoftOptimalWeights", "UncertaintyWeights", "decay_weights", "hierarchical_loss"]


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

    The number of a level's cells does not matter. A level without a valid element adds 0.

    Args:
        preds: Predicted features of each level, finest first, such as `[b m n d]`.
        targets: Features to predict, of the same shapes. A gradient flows here too unless they are
            detached, as a teacher's are.
        valids: True where a token counts, `pred.shape[:-1]` each, as in `tokens.valid`.
        weights: None for the plain mean, `1 / len(preds)` each; numbers, used as they are (see
            `decay_weights`); or a function of the losses `[levels]` that returns the total, such as
            `UncertaintyWeights` or `SoftOptimalWeights`.
        loss: Loss of one level, `loss(pred, target, valid)`, a single number. Bind its options with
            `functools.partial`, a `process_group` too.

    Raises:
        ValueError: If the numbers of preds, targets, valids and weights differ, a weight is
            negative or all are 0, or `loss` or `weights` returns more than one number.

    Returns:
        The total, and the loss of each level, not weighted and detached, as `"level_0"`,
        `"level_1"`, ...

    Example:
        >>> import torch
        >>> from jepakit import masked_mse
        >>> preds = [torch.ones(1, 16, 2), torch.full((1, 4, 2), 2.0)]
        >>> targets = [torch.zeros_like(pred) for pred in preds]
        >>> valids = [torch.ones(pred.shape[:-1], dtype=torch.bool) for pred in preds]
        >>> total, parts = hierarchical_loss(preds, targets, valids, loss=masked_mse)
        >>> total, parts
        (tensor(2.5000), {'level_0': tensor(1.), 'level_1': tensor(4.)})
    """
    for name, levels in (("preds", preds), ("targets", targets), ("valids", valids)):
        if not isinstance(levels, Sequence):
            raise TypeError(f"{name}: must be a sequence of tensors, got {type_name(levels)}")
    num_levels = len(preds)
    if num_levels == 0 or len(targets) != num_levels or len(valids) != num_levels:
        counts = f"{num_levels} preds, {len(targets)} targets and {len(valids)} valids"
        raise ValueError(f"{counts}: must be as many of each as there are levels, at least one")
    if not callable(loss):
        raise TypeError(f"loss={loss!r}: must be a function, got {type_name(loss)}")
    fixed_weights = () if callable(weights) else _fixed_weights(weights, num_levels)
    losses = []
    for level, (pred, target, valid) in enumerate(zip(preds, targets, valids, strict=True)):
        value = loss(pred, target, valid)
        _check_result("loss", value, f" on level {level}")
        losses.append(value)
    if callable(weights):
        if isinstance(weights, type):
            raise TypeError(f"weights={weights.__name__}: must be an object, such as an instance")
        total = weights(torch.stack(losses))
        _check_result("weights", total)
    else:
        # A level of weight 0 is left out, not multiplied: its loss may be infinite.
        terms = [w * value for w, value in zip(fixed_weights, losses, strict=True) if w != 0]
        total = torch.stack(terms).sum()
    return total, {f"level_{level}": value.detach() for level, value in enumerate(losses)}


def _check_result(name: str, value: object, where: str = "") -> None:
    """Raise unless `value`, which a function returned, is a tensor of one number."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: must give a torch.Tensor, but gives {type_name(value)}{where}")
    if value.dim() != 0:
        shape = tuple(value.shape)
        raise ValueError(f"{name}: must give a single number, but gives {shape}{where}")


def _fixed_weights(weights: Sequence[float] | None, num_levels: int) -> tuple[float, ...]:
    if weights is None:
        return (1 / num_levels,) * num_levels
    numbers = as_numbers("weights", weights, minimum=0)
    if len(numbers) != num_levels or not any(numbers):
        raise ValueError(f"weights={numbers}: must be {num_levels}, one for each level, not all 0")
    return numbers


def decay_weights(
    num_levels: int, decay_ratio: float = 0.5, *, heaviest: Literal["fine", "coarse"] = "fine"
) -> list[float]:
    r"""Weights that fall by a constant factor from level to level, and sum to 1.

    $$w_l = r^{l} \Big/ \sum_k r^{k}$$

    with level 0, the finest, first; `heaviest="coarse"` gives the same weights in reverse order.

    Args:
        num_levels: Number of levels, at least 2.
        decay_ratio: Ratio $r$ of one weight to the one before, in (0, 1).
        heaviest: End with the largest weight.

    Raises:
        ValueError: If an argument is out of its range; `weights=None` weighs levels equally.

    Example:
        >>> [round(weight, 4) for weight in decay_weights(3)]
        [0.5714, 0.2857, 0.1429]
        >>> [round(weight, 4) for weight in decay_weights(3, heaviest="coarse")]
        [0.1429, 0.2857, 0.5714]
    """
    num_levels = as_int("num_levels", num_levels, minimum=2)
    decay_ratio = as_fraction("decay_ratio", decay_ratio, open_low=True, open_high=True)
    as_choice("heaviest", heaviest, ("fine", "coarse"))
    powers = [decay_ratio**level for level in range(num_levels)]
    weights = [power / sum(powers) for power in powers]
    return weights if heaviest == "fine" else weights[::-1]


@dataclass(frozen=True)
class SoftOptimalWeights:
    r"""Softmax over inverse losses (UW-SO): the smaller a loss, the larger its weight.

    $$L = \sum_l w_l \ell_l, \qquad
        w = \mathrm{softmax}_l\left(\frac{1}{T\,\mathrm{sg}(\ell_l)}\right)$$

    where $\mathrm{sg}$ stops the gradient. Weights sum to 1 and nothing is learned. A loss of
    exactly 0, of a level without valid tokens, has weight 0: its inverse would take all of it.

    Args:
        temperature: $T$, in units of one over the loss; above 0. Large for equal weights, small for
            all of the weight on the smallest loss. With 1 that happens for losses below 0.1.

    Example:
        >>> import torch
        >>> soft = SoftOptimalWeights(temperature=10.0)
        >>> losses = torch.tensor([0.5, 0.25])
        >>> soft.weights(losses)
        tensor([0.4502, 0.5498])
        >>> soft(losses)
        tensor(0.3625)

    Source:
        Kirchdorfer et al. (arXiv:2408.07985). Difference: a loss of 0 is left out.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        store_fields(self, temperature=as_number("temperature", self.temperature, positive=True))

    def weights(self, losses: Float[Tensor, " levels"]) -> Float[Tensor, " levels"]:
        """Weights for the `losses` of all levels, without gradient."""
        _check_losses(losses)
        fixed = losses.detach()
        empty = fixed == 0
        # The largest and the lowest finite number in place of infinities, of which softmax would
        # make NaN: the inverse of a tiny loss overflows, and all levels may be empty.
        limit = torch.finfo(fixed.dtype)
        scores = (1 / (self.temperature * fixed.masked_fill(empty, 1))).clamp(max=limit.max)
        scores = scores.masked_fill(empty, limit.min)
        return scores.softmax(dim=0).masked_fill(empty, 0)

    def __call__(self, losses: Float[Tensor, " levels"]) -> Float[Tensor, ""]:
        """Weighted sum of the `losses` of all levels."""
        return (self.weights(losses) * losses).sum()


class UncertaintyWeights(nn.Module):
    r"""A learned weight for each loss, with a penalty that keeps it from going to 0.

    $$L = \frac{1}{n} \sum_l (w_l \ell_l - \log w_l), \qquad
        w_l = W^{\,a_l / (1 + |a_l|)} \in (1 / W, W)$$

    The parameters start at $a_l = 0$, so $w_l = 1$. The optimum of a weight is one over its loss:
    noisy levels count less. Without a bound, a loss that goes to 0 would send its weight to
    infinity; this bound is soft, so that the gradient never vanishes.

    Pass the parameters to the optimiser, without weight decay (which would pull the weights to 1),
    and wrap the module for several ranks like any other. The total may be negative and does not
    measure progress; the parts do. A loss of exactly 0, of a level without valid tokens, adds 0.

    Args:
        num_levels: Number of losses, at least 2.
        max_weight: $W$, above 1; weights lie between its inverse and it.

    Raises:
        ValueError: If there are not `num_levels` losses.

    Example:
        >>> import torch
        >>> uncertainty = UncertaintyWeights(2)
        >>> total = uncertainty(torch.tensor([0.5, 2.0]))
        >>> total
        tensor(1.2500, grad_fn=<DivBackward0>)
        >>> total.backward()
        >>> uncertainty.raw.grad.sign()   # a step raises the weight of the smaller loss
        tensor([-1.,  1.])

    Source:
        Kendall, Gal and Cipolla (arXiv:1705.07115). Differences: the weight is one over the
        variance without their factor 1/2 and is bounded, and the total is a mean over levels.
    """

    def __init__(self, num_levels: int, *, max_weight: float = 10.0) -> None:
        super().__init__()
        num_levels = as_int("num_levels", num_levels, minimum=2)
        self.max_weight = as_number("max_weight", max_weight)
        if self.max_weight <= 1:
            raise ValueError(f"max_weight={self.max_weight:g}: must be above 1")
        self.raw = nn.Parameter(torch.zeros(num_levels))

    @property
    def weights(self) -> Float[Tensor, " levels"]:
        """The current weights, without gradient."""
        return self._log_weights().detach().exp()

    def forward(self, losses: Float[Tensor, " levels"]) -> Float[Tensor, ""]:
        """The total of the `losses` of all levels."""
        _check_losses(losses, len(self.raw))
        log_weights = self._log_weights()
        terms = log_weights.exp() * losses - log_weights
        return terms.masked_fill(losses.detach() == 0, 0).sum() / len(self.raw)

    def _log_weights(self) -> Tensor:
        # The slope of softsign falls with the square of the parameter; that of tanh underflows to
        # 0, and that of a clamp is 0 outside its bounds.
        return math.log(self.max_weight) * F.softsign(self.raw.float())

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{len(self.raw)}, max_weight={self.max_weight}"


def _check_losses(losses: Tensor, num_levels: int | None = None) -> None:
    check_floating("losses", losses)
    if losses.dim() != 1 or num_levels not in (None, len(losses)):
        levels = "level" if num_levels is None else f"of {num_levels} levels"
        raise ValueError(f"losses {tuple(losses.shape)}: must be a vector, one for each {levels}")
