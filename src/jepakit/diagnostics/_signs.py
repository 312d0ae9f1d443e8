"""The rules by which a series of observations is called a collapse."""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from jepakit.diagnostics.collapse import Observation, Reference

__all__ = ["FIRST", "LEAST_ROWS", "better_reference", "signs_of"]

# Fewer rows than this span too few directions to be judged by them.
LEAST_ROWS = 8
# Observations that make the first reference, and those that can raise it: a level that was held.
FIRST, _HELD = 10, 100
# Variation below this share of the length is none at all, and a line has no more than this beside.
_CONSTANT, _LINE = 1e-3, 1e-3
# Observations over which a trend is looked for.
_WINDOWS = (30, 120, 480)
# A trend is at least this fall within a window, and this many standard errors.
_LEAST_FALL, _ERRORS = 0.1, 4.0
# A fall is told to begin where the spread was last at this share of the reference.
_HELD_SHARE = 0.9


def signs_of(
    history: Sequence[Observation],
    reference: Reference | None,
    *,
    std_fall: float,
    slow_fall: float,
    rank_fall: float,
    dead_share: float,
    patience: int,
) -> dict[str, int]:
    """The signs that the last observation shows, with the step that each begins at."""
    seen, signs = history[-1], {}
    full = seen.relative_std < _CONSTANT
    if reference is not None:
        full |= seen.std < std_fall * reference.std
        full |= seen.relative_std < std_fall * reference.relative_std
        since = _falling_since(history, reference, slow_fall)
        if since is not None:
            signs["slow"] = since
    if full:
        signs["full"] = seen.step
    if seen.rows >= LEAST_ROWS:
        if seen.off_line < _LINE:
            signs["line"] = seen.step
        if reference is not None:
            least = rank_fall * (_rank_with(reference, seen.rows) - 1)
            if seen.rank - 1 < least:
                signs["rank"] = seen.step
        if seen.dead > dead_share:
            signs["dead"] = history[-patience:][0].step
    return signs


def better_reference(
    history: Sequence[Observation], reference: Reference | None
) -> Reference | None:
    """The reference after the last observation."""
    if reference is None:
        return _medians(history) if len(history) == FIRST else None
    if len(history) < _HELD:
        return reference
    held = _medians(history[-_HELD:])
    # The rows belong to the rank.
    rows = max(reference, held, key=lambda each: each.rank).rows
    return Reference(rows, *map(max, reference[1:], held[1:]))


def _medians(history: Sequence[Observation]) -> Reference:
    """Medians of some observations."""
    return Reference(
        rows=median(seen.rows for seen in history),
        std=median(seen.std for seen in history),
        relative_std=median(seen.relative_std for seen in history),
        rank=median(seen.rank for seen in history),
    )


def _rank_with(reference: Reference, rows: int) -> float:
    """The rank that the reference would have shown with fewer rows.

    A sample of n rows adds about 1 / n to the inverse of a participation ratio.
    """
    if reference.rank <= 0:
        return 0.0
    return 1 / (1 / reference.rank + max(0.0, 1 / rows - 1 / reference.rows))


def _falling_since(
    history: Sequence[Observation], reference: Reference, slow_fall: float
) -> int | None:
    """The step from which the spread has been falling, if it is far below the reference."""
    for name in ("std", "relative_std"):
        limit = slow_fall * getattr(reference, name)
        if getattr(history[-1], name) >= limit:
            continue
        for length in _WINDOWS:
            if len(history) < length:
                break
            window = history[-length:]
            values = [math.log(max(getattr(seen, name), 1e-300)) for seen in window]
            if _level_after_fall(values) < math.log(max(limit, 1e-300)):
                held = _HELD_SHARE * getattr(reference, name)
                before = [seen.step for seen in history if getattr(seen, name) >= held]
                return before[-1] if before else history[0].step
    return None


def _level_after_fall(values: list[float]) -> float:
    """The level at the end of a steady fall; infinite if there is none."""
    size = len(values) // 3
    thirds = [values[start : start + size] for start in (0, size, 2 * size)]
    levels = [median(third) for third in thirds]
    fall = levels[0] - levels[2]
    noise = sum(
        1.4826 * median(abs(v - level) for v in third)
        for third, level in zip(thirds, levels, strict=True)
    ) / len(thirds)
    # The standard error of a median of m values is about 1.25 sigma / sqrt(m).
    error = 1.25 * noise * math.sqrt(2 / size)
    steady = all(a - b >= fall / 4 for a, b in pairwise(levels))
    falls = fall >= _LEAST_FALL and fall >= _ERRORS * error and steady
    return levels[2] if falls else math.inf
