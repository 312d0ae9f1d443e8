"""`UncertaintyWeights`: learned weights of several losses."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from jepakit._checks import check_int, check_number
from jepakit.losses.level_weights import check_losses

__all__ = ["UncertaintyWeights"]


class UncertaintyWeights(nn.Module):
    r"""A learned weight for each loss, at a price that keeps it from going to 0.

    $$L = \frac{1}{n} \sum_l (w_l \ell_l - \log w_l), \qquad
        w_l = W^{\,a_l / (1 + |a_l|)} \in (1 / W, W)$$

    with the parameters $a_l = 0$ and so $w_l = 1$ at first. At its best a weight is one over its
    loss: noisy levels count less. Without a bound, a loss that goes to 0 would send its weight to
    infinity; this bound is soft, so that a gradient is left wherever the parameter stands.

    It is a module with parameters: hand them to the optimiser, without weight decay (which would
    pull the weights to 1), and wrap it for several ranks like any other. The total may be negative
    and is no measure of progress; the parts are. A loss of exactly 0, that of a level without a
    valid token, has no share in the total.

    Args:
        num_levels: How many losses.
        max_weight: $W$, above 1; no weight exceeds it or falls below its inverse.

    Raises:
        TypeError: If `max_weight` is no number.
        ValueError: If `num_levels` is below 2, `max_weight` not above 1, or there are not
            `num_levels` losses.

    Example:
        >>> import torch
        >>> from jepakit.losses import UncertaintyWeights
        >>> uncertainty = UncertaintyWeights(2)
        >>> total = uncertainty(torch.tensor([0.5, 2.0]))
        >>> total
        tensor(1.2500, grad_fn=<DivBackward0>)
        >>> total.backward()
        >>> uncertainty.raw.grad.sign()   # the smaller loss is to count more
        tensor([-1.,  1.])

    Source:
        Kendall, Gal and Cipolla (arXiv:1705.07115). Differences: the weight stands for
        one over the variance without their factor 1/2, it is bounded, and the total is a mean over
        levels.
    """

    def __init__(self, num_levels: int, *, max_weight: float = 10.0) -> None:
        super().__init__()
        check_int("num_levels", num_levels, minimum=2)
        check_number("max_weight", max_weight)
        if max_weight <= 1:
            raise ValueError(f"max_weight={max_weight}: must be above 1")
        self.max_weight = max_weight
        self.raw = nn.Parameter(torch.zeros(num_levels))

    @property
    def weights(self) -> Float[Tensor, " levels"]:
        """The weights as they are now, without gradient."""
        return self._log_weights().detach().exp()

    def forward(self, losses: Float[Tensor, " levels"]) -> Float[Tensor, ""]:
        """The total.

        Args:
            losses: The loss of each level.
        """
        check_losses(losses, len(self.raw))
        logs = self._log_weights()
        terms = logs.exp() * losses - logs
        return terms.masked_fill(losses.detach() == 0, 0).sum() / len(self.raw)

    def _log_weights(self) -> Tensor:
        # Its slope falls with the square of the parameter; that of tanh or a clamp would be 0.
        return math.log(self.max_weight) * F.softsign(self.raw.float())

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{len(self.raw)}, max_weight={self.max_weight}"
