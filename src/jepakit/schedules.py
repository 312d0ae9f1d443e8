"""Schedules: pure functions from a step to a number, for momentum, learning rate and the like.

A schedule is a frozen dataclass that is called with a step, so it can be printed, compared, pickled
and deep-copied. It holds no state: whoever counts steps (a teacher, an optimiser loop) saves the
count, and a resumed run reads the same numbers.
"""

import math
import operator
from dataclasses import KW_ONLY, dataclass

from jepakit._checks import check_int, check_number

__all__ = ["constant", "cosine", "linear", "warmup_cosine"]


@dataclass(frozen=True)
class constant:
    r"""The same value at every step.

    $$f(s) = v$$

    Args:
        value: The value, finite.

    Raises:
        TypeError: If `value` is not a number, or a step not an int.
        ValueError: If `value` is not finite.

    Example:
        >>> constant(0.996)(10)
        0.996

    Source:
        jepakit's own.
    """

    value: float

    def __post_init__(self) -> None:
        check_number("value", self.value)

    def __call__(self, step: int) -> float:
        """The value at `step`."""
        _as_int(step)
        return float(self.value)


@dataclass(frozen=True)
class linear:
    r"""A straight line from `start` to `end`.

    $$f(s) = a + (b - a)\,t, \qquad t = \min(\max(s / S, 0), 1)$$

    Args:
        start: Value $a$ at step 0 and before.
        end: Value $b$ at step `steps` and after.
        steps: Length $S$ in steps; with 0 it is `end` everywhere.

    Raises:
        TypeError: If an argument is not a number, or `steps` or a step not an int.
        ValueError: If `start` or `end` is not finite, or `steps` is negative.

    Example:
        >>> momentum = linear(0.996, 1.0, steps=100)
        >>> momentum(0), momentum(50), momentum(1000)
        (0.996, 0.998, 1.0)

    Source:
        I-JEPA (arXiv:2301.08243): momentum from 0.996 to 1, linear per optimiser step over the
        whole training. Its published code stretches training length by 1.25, so that 1 is never
        reached; pass `steps=round(1.25 * total_steps)` for the same.
    """

    start: float
    end: float
    _: KW_ONLY
    steps: int

    def __post_init__(self) -> None:
        _check_ends(self.start, self.end, self.steps)

    def __call__(self, step: int) -> float:
        """The value at `step`."""
        return _between(self.start, self.end, _progress(step, self.steps))


@dataclass(frozen=True)
class cosine:
    r"""Half a cosine wave from `start` to `end`, flat at both.

    $$f(s) = a + (b - a)\,\frac{1 - \cos \pi t}{2}, \qquad t = \min(\max(s / S, 0), 1)$$

    Args:
        start: Value $a$ at step 0 and before.
        end: Value $b$ at step `steps` and after.
        steps: Length $S$ in steps; with 0 it is `end` everywhere.

    Raises:
        TypeError: If an argument is not a number, or `steps` or a step not an int.
        ValueError: If `start` or `end` is not finite, or `steps` is negative.

    Example:
        >>> cosine(1.0, 0.0, steps=10)(5)
        0.5

    Source:
        SGDR (arXiv:1608.03983), one period without restarts.
    """

    start: float
    end: float
    _: KW_ONLY
    steps: int

    def __post_init__(self) -> None:
        _check_ends(self.start, self.end, self.steps)

    def __call__(self, step: int) -> float:
        """The value at `step`."""
        return _between(self.start, self.end, _half_wave(_progress(step, self.steps)))


@dataclass(frozen=True)
class warmup_cosine:
    r"""A straight line from `start` to `peak`, then half a cosine wave down to `end`.

    $$f(s) = \begin{cases}
        \mathrm{linear}(\mathrm{start}, \mathrm{peak}; W)(s) & s < W \\
        \mathrm{cosine}(\mathrm{peak}, \mathrm{end}; S - W)(s - W) & s \ge W
        \end{cases}$$

    Step 0 gives `start`. As a learning rate, the default of 0 makes the first step do nothing;
    count from 1, or give a small `start`, if that matters.

    Args:
        peak: Value at step `warmup_steps`.
        end: Value at step `steps` and after.
        warmup_steps: Length $W$ of the warm-up in steps, at most `steps`; 0 begins at `peak`.
        steps: Length $S$ of the whole in steps, the warm-up included.
        start: Value at step 0 and before. With `warmup_steps=0` it has no effect, so that another
            value than 0 raises.

    Raises:
        TypeError: If an argument is not a number, or `steps`, `warmup_steps` or a step not an int.
        ValueError: If a value is not finite, `steps` or `warmup_steps` is negative, `warmup_steps`
            is above `steps`, or `start` cannot take effect.

    Example:
        >>> rate = warmup_cosine(1e-3, warmup_steps=10, steps=100)
        >>> rate(0), rate(5), rate(10), rate(100)
        (0.0, 0.0005, 0.001, 0.0)

    Source:
        Goyal et al. (arXiv:1706.02677) for the warm-up, SGDR (arXiv:1608.03983) for the cosine.
    """

    peak: float
    end: float = 0.0
    _: KW_ONLY
    warmup_steps: int
    steps: int
    start: float = 0.0

    def __post_init__(self) -> None:
        check_number("peak", self.peak)
        check_number("start", self.start)
        _check_ends(self.start, self.end, self.steps)
        check_int("warmup_steps", self.warmup_steps, minimum=0)
        if self.warmup_steps > self.steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps}: must be at most steps={self.steps}"
            )
        if self.warmup_steps == 0 and self.start != 0:
            raise ValueError(
                f"start={self.start}: must be left at 0 with warmup_steps=0, where it has no effect"
            )

    def __call__(self, step: int) -> float:
        """The value at `step`."""
        step = max(_as_int(step), 0)
        if step < self.warmup_steps:
            return _between(self.start, self.peak, _progress(step, self.warmup_steps))
        past = _progress(step - self.warmup_steps, self.steps - self.warmup_steps)
        return _between(self.peak, self.end, _half_wave(past))


def _check_ends(start: float, end: float, steps: int) -> None:
    check_number("start", start)
    check_number("end", end)
    check_int("steps", steps, minimum=0)


def _as_int(step: int) -> int:
    try:
        return operator.index(step)  # takes NumPy's integers too
    except TypeError:
        raise TypeError(f"step={step!r}: must be an int, got {type(step).__name__}") from None


def _progress(step: int, steps: int) -> float:
    step = max(_as_int(step), 0)
    return 1.0 if step >= steps else step / steps


def _half_wave(progress: float) -> float:
    return (1 - math.cos(math.pi * progress)) / 2


def _between(start: float, end: float, progress: float) -> float:
    # start + (end - start) may miss the end by rounding, and carry a momentum above 1.
    return float(end) if progress >= 1 else start + (end - start) * progress
