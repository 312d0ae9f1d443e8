"""Schedules: pure functions from a step to a number, for momentum, learning rate and the like.

A schedule is a frozen dataclass that is called with a step, so it can be printed, compared, pickled
and deep-copied. It has no state: the caller (a teacher, an optimiser loop) counts the steps and
saves the count, and a resumed run gets the same numbers.
"""

import math
import operator
from dataclasses import KW_ONLY, dataclass

from jepakit._checks import as_int, as_number, store_fields

__all__ = ["constant", "cosine", "linear", "warmup_cosine"]


@dataclass(frozen=True)
class constant:
    """The same value at every step.

    Args:
        value: The value.

    Example:
        >>> constant(0.996)(10)
        0.996
    """

    value: float

    def __post_init__(self) -> None:
        store_fields(self, value=as_number("value", self.value))

    def __call__(self, step: int) -> float:
        """The value at `step`."""
        _as_step(step)
        return self.value


@dataclass(frozen=True)
class linear:
    r"""A straight line from `start` to `end`.

    $$f(s) = a + (b - a)\,t, \qquad t = \min(\max(s / S, 0), 1)$$

    Args:
        start: Value $a$ at step 0 and before.
        end: Value $b$ at step `steps` and after.
        steps: Length $S$ in steps; with 0 it is `end` everywhere.

    Example:
        >>> momentum = linear(0.996, 1.0, steps=100)
        >>> momentum(0), momentum(50), momentum(1000)
        (0.996, 0.998, 1.0)

    Source:
        I-JEPA (arXiv:2301.08243): momentum from 0.996 to 1, linear per optimiser step over the
        whole training. V-JEPA's configuration files stretch schedules by 1.25 (`ipe_scale`), so
        that 1 is never reached; pass `steps=round(1.25 * total_steps)` for the same.
    """

    start: float
    end: float
    _: KW_ONLY
    steps: int

    def __post_init__(self) -> None:
        _store_ends(self)

    def __call__(self, step: int) -> float:
        """The value at `step`."""
        return _interpolate(self.start, self.end, _progress(step, self.steps))


@dataclass(frozen=True)
class cosine:
    r"""Half a cosine wave from `start` to `end`, flat at both.

    $$f(s) = a + (b - a)\,\frac{1 - \cos \pi t}{2}, \qquad t = \min(\max(s / S, 0), 1)$$

    Args:
        start, end, steps: As in `linear`.

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
        _store_ends(self)

    def __call__(self, step: int) -> float:
        """The value at `step`."""
        return _interpolate(self.start, self.end, _half_wave(_progress(step, self.steps)))


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
        start: Value at step 0 and before; 0 with `warmup_steps=0`, where it has no effect.

    Raises:
        ValueError: If `start` cannot take effect.

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
        steps = as_int("steps", self.steps, minimum=0)
        store_fields(
            self,
            peak=as_number("peak", self.peak),
            end=as_number("end", self.end),
            warmup_steps=as_int("warmup_steps", self.warmup_steps, minimum=0, maximum=steps),
            steps=steps,
            start=as_number("start", self.start),
        )
        if self.warmup_steps == 0 and self.start != 0:
            raise ValueError(f"start={self.start}: must be 0 with warmup_steps=0, has no effect")

    def __call__(self, step: int) -> float:
        """The value at `step`."""
        step = max(_as_step(step), 0)
        if step < self.warmup_steps:
            return _interpolate(self.start, self.peak, _progress(step, self.warmup_steps))
        progress = _progress(step - self.warmup_steps, self.steps - self.warmup_steps)
        return _interpolate(self.peak, self.end, _half_wave(progress))


def _store_ends(schedule: linear | cosine) -> None:
    store_fields(
        schedule,
        start=as_number("start", schedule.start),
        end=as_number("end", schedule.end),
        steps=as_int("steps", schedule.steps, minimum=0),
    )


def _as_step(step: int) -> int:
    # `index` gives a plain int also within `torch.compile`, which then compiles again for another
    # step; a symbolic one would become a symbolic float, which it cannot check.
    return operator.index(as_int("step", step))


def _progress(step: int, steps: int) -> float:
    step = max(_as_step(step), 0)
    return 1.0 if step >= steps else step / steps


def _half_wave(progress: float) -> float:
    return (1 - math.cos(math.pi * progress)) / 2


def _interpolate(start: float, end: float, progress: float) -> float:
    # start + (end - start) may miss the end by rounding, and carry a momentum above 1.
    return end if progress >= 1 else start + (end - start) * progress
