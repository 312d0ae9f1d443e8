"""`LearnableTemperature`: a temperature that stays between two bounds and sticks to neither."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepakit._checks import check_number

__all__ = ["LearnableTemperature"]


class LearnableTemperature(nn.Module):
    r"""A learned temperature between two bounds, smooth in its parameter.

    $$\tau = \exp\Big(\frac{\log a + \log b}{2}
        + \frac{\log b - \log a}{2} \cdot \frac{2}{\pi} \arctan \theta\Big)$$

    The bounds are approached and not passed, and the slope in $\theta$ falls as
    $1 / (1 + \theta^2)$: a temperature that was driven against a bound comes back in as many steps
    as it was pressed there. A clamp has no gradient outside, and a sigmoid's falls exponentially
    and is exactly 0 in float32 from 17 on.

    Called without arguments it gives the temperature, for `info_nce(..., temperature=...)`. The
    parameter is a scalar; keep it out of weight decay, which would pull it to the geometric mean of
    the bounds.

    Args:
        low: The lower bound $a$, above 0.
        high: The upper bound $b$, above `low`.
        initial: The value to begin with, strictly between the bounds. Their geometric mean if None.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If not `0 < low < initial < high`.

    Example:
        >>> from jepakit.losses import LearnableTemperature
        >>> temperature = LearnableTemperature(0.05, 0.2)
        >>> temperature()
        tensor(0.1000, grad_fn=<ExpBackward0>)

    Source:
        jepakit's own. CLIP (arXiv:2103.00020) learns the logarithm and clips it, which ends its
        gradient.
    """

    def __init__(
        self, low: float = 0.05, high: float = 0.2, *, initial: float | None = None
    ) -> None:
        super().__init__()
        check_number("low", low, positive=True)
        check_number("high", high)
        if high <= low:
            raise ValueError(f"high={high}: must be above low={low}")
        if initial is None:
            initial = math.sqrt(low * high)
        check_number("initial", initial)
        if not low < initial < high:
            raise ValueError(f"initial={initial}: must lie strictly between {low} and {high}")
        self.low, self.high = low, high
        middle, half = self._logs()
        place = (math.log(initial) - middle) / half
        self.theta = nn.Parameter(torch.tensor(math.tan(math.pi / 2 * place)))

    def _logs(self) -> tuple[float, float]:
        low, high = math.log(self.low), math.log(self.high)
        return (low + high) / 2, (high - low) / 2

    def forward(self) -> Float[Tensor, ""]:
        """The temperature."""
        middle, half = self._logs()
        return (middle + half * 2 / math.pi * torch.atan(self.theta.float())).exp()

    def extra_repr(self) -> str:
        """The bounds."""
        return f"low={self.low}, high={self.high}"
