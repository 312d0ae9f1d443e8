"""What a level counts in a sum, where nothing is learned for it."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from jepakit._checks import check_choice, check_floating, check_fraction, check_int, check_number

__all__ = ["SoftOptimalWeights", "decay_weights"]


def decay_weights(
    num_levels: int, decay: float = 0.5, *, heaviest: Literal["fine", "coarse"] = "fine"
) -> list[float]:
    r"""Weights that fall by a factor from level to level, and sum to 1.

    $$w_l = d^{l} \Big/ \sum_k d^{k}$$

    from the finest level on, or, with `heaviest="coarse"`, the same weights the other way round.

    Args:
        num_levels: How many.
        decay: What is left of a weight one level on, a fraction below 1; for equal weights pass
            none at all.
        heaviest: The end that counts most.

    Raises:
        ValueError: If `num_levels` is below 2, `decay` not in (0, 1), or `heaviest` unknown.

    Example:
        >>> from jepakit.losses import decay_weights
        >>> [round(weight, 4) for weight in decay_weights(3)]
        [0.5714, 0.2857, 0.1429]
        >>> [round(weight, 4) for weight in decay_weights(3, heaviest="coarse")]
        [0.1429, 0.2857, 0.5714]

    Source:
        jepakit's own.
    """
    check_int("num_levels", num_levels, minimum=2)
    check_fraction("decay", decay, open_low=True)
    if decay == 1:
        raise ValueError("decay=1: must be below 1; weights=None counts levels alike")
    check_choice("heaviest", heaviest, ("fine", "coarse"))
    powers = [decay**level for level in range(num_levels)]
    weights = [power / sum(powers) for power in powers]
    return weights if heaviest == "fine" else weights[::-1]


@dataclass(frozen=True)
class SoftOptimalWeights:
    r"""The smaller a loss, the larger its weight: a softmax over inverse losses (UW-SO).

    $$L = \sum_l w_l \ell_l, \qquad
        w = \mathrm{softmax}_l\left(\frac{1}{T\,\mathrm{sg}(\ell_l)}\right)$$

    with $\mathrm{sg}$ for no gradient. Weights sum to 1 and nothing is learned. A loss of exactly
    0, that of a level without a valid token, has weight 0: its inverse would take all of it.

    Args:
        temperature: $T$, in units of one over the loss: large for equal weights, small for all of
            the weight on the smallest loss. With 1 that is so for losses below 0.1.

    Raises:
        TypeError: If `temperature` is no number.
        ValueError: If `temperature` is not above 0, or losses are not a vector.

    Example:
        >>> import torch
        >>> from jepakit.losses import SoftOptimalWeights
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
        check_number("temperature", self.temperature, positive=True)

    def weights(self, losses: Float[Tensor, " levels"]) -> Float[Tensor, " levels"]:
        """The weights of these losses, without gradient.

        Args:
            losses: The loss of each level.
        """
        check_losses(losses)
        known = losses.detach()
        empty = known == 0
        # The largest and the lowest number instead of infinities, of which a softmax makes NaN: for
        # tiny losses, and where there is nothing at all to weigh.
        limit = torch.finfo(known.dtype)
        scores = (1 / (self.temperature * known.masked_fill(empty, 1))).clamp(max=limit.max)
        scores = scores.masked_fill(empty, limit.min)
        return scores.softmax(dim=0).masked_fill(empty, 0)

    def __call__(self, losses: Float[Tensor, " levels"]) -> Float[Tensor, ""]:
        """The weighted sum.

        Args:
            losses: The loss of each level.
        """
        return (self.weights(losses) * losses).sum()


def check_losses(losses: Tensor, num_levels: int | None = None) -> None:
    """Raise unless losses are a vector, of `num_levels` entries if that is given."""
    check_floating("losses", losses)
    rule = "one for each level" if num_levels is None else f"one for each of {num_levels} levels"
    if losses.dim() != 1 or num_levels not in (None, len(losses)):
        raise ValueError(f"losses {tuple(losses.shape)}: must be a vector, {rule}")
