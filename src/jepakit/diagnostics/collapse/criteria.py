"""Signs of collapse: the table of them, the rules that find them, and when they are reported."""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Any, Literal, NamedTuple

from jepakit.diagnostics.collapse.observation import Observation, Reference

__all__ = ["SIGNS", "CollapseKind", "Sign", "SignName", "SignTracker", "find_signs"]

CollapseKind = Literal["full", "dimensional", "slow", "not finite"]
SignName = Literal["not finite", "full", "line", "rank", "dead", "slow"]


class Sign(NamedTuple):
    """One rule of `CollapseMonitor`: how severe it is, and what a report says.

    With `needs_patience`, `patience` observations in a row must show it; of the others one is
    enough, or they span many observations by themselves.
    """

    name: SignName
    severity: int
    kind: CollapseKind
    needs_patience: bool
    text: str
    advice: str  # with {first_step}


_DECORRELATE = (
    "a lower learning rate or a higher teacher momentum, and a regulariser on pooled features that "
    "decorrelates dimensions: vicreg, barlow or sigreg. Check for a ReLU at the end of a head, and "
    "for targets that are too easy (blocks too small, next to the context)."
)

# Most severe first.
SIGNS: tuple[Sign, ...] = (
    Sign(
        "not finite", 4, "not finite", False, "features contain NaN or infinity",
        "a lower learning rate, gradient clipping, and loss and softmax in float32 under autocast. "
        "Resume from a checkpoint before step {first_step}.",
    ),
    Sign(
        "full", 3, "full", True, "all feature vectors are nearly identical",
        "no gradient through the targets, and a teacher that moves slowly: a higher momentum, a "
        "lower learning rate with warm-up, or a regulariser on pooled features (vicreg, sigreg). "
        "Resume from a checkpoint before step {first_step}: a collapsed model seldom recovers.",
    ),
    Sign("line", 2, "dimensional", True, "nearly all variance lies along one line", _DECORRELATE),
    Sign(
        "rank", 2, "dimensional", True, "the effective rank has fallen far below its reference",
        _DECORRELATE,
    ),
    Sign("dead", 2, "dimensional", False, "many dimensions no longer vary", _DECORRELATE),
    Sign(
        "slow", 1, "slow", False, "the standard deviation falls steadily",
        "a constraint on the features' scale, which the loss seems to lack: normalize_targets, "
        "variance_loss on pooled features, no weight decay on the gains of norms, or a higher "
        "teacher momentum.",
    ),
)  # fmt: skip

MIN_ROWS = 8  # fewer rows span too few directions to be judged by rank or dead dimensions
REFERENCE_LENGTH, _RAISING_LENGTH = 10, 100  # observations that set, and can raise, the reference
_CONSTANT_RATIO = 1e-3  # full collapse without a reference: std below this fraction of the length
_LINE_RATIO = 1e-3  # on a line: less than this fraction of the variance off the first axis
_WINDOWS = (30, 120, 480)  # numbers of observations over which a trend is tested
_MIN_FALL, _MIN_ERRORS = 0.1, 4.0  # of a trend: fall of log std, and the same in standard errors
_START_RATIO = 0.9  # a fall begins where std was last at this fraction of the reference


def find_signs(
    history: Sequence[Observation],
    reference: Reference | None,
    *,
    std_ratio: float,
    slow_std_ratio: float,
    rank_ratio: float,
    dead_ratio: float,
    patience: int,
) -> dict[SignName, int]:
    """Return the signs that the last observation shows, each with the step where it begins."""
    last = history[-1]
    signs: dict[SignName, int] = {}
    full = last.relative_std < _CONSTANT_RATIO
    if reference is not None:
        full |= last.std < std_ratio * reference.std
        full |= last.relative_std < std_ratio * reference.relative_std
        start = _start_of_fall(history, reference, slow_std_ratio)
        if start is not None:
            signs["slow"] = start
    if full:
        signs["full"] = last.step
    if last.num_rows >= MIN_ROWS:
        if last.off_axis_ratio < _LINE_RATIO:
            signs["line"] = last.step
        if reference is not None:
            expected = _reference_rank(reference, last.num_rows)
            if last.rank - 1 < rank_ratio * (expected - 1):
                signs["rank"] = last.step
        if last.dead_ratio > dead_ratio:
            signs["dead"] = history[-patience:][0].step
    return signs


def update_reference(
    history: Sequence[Observation], reference: Reference | None
) -> Reference | None:
    """Set the reference after the first observations; raise it to any level held for long."""
    if reference is None:
        return _medians(history) if len(history) == REFERENCE_LENGTH else None
    if len(history) < _RAISING_LENGTH:
        return reference
    held = _medians(history[-_RAISING_LENGTH:])
    # The number of rows is that of the larger rank, see _reference_rank.
    num_rows = max(reference, held, key=lambda each: each.rank).num_rows
    return Reference(num_rows, *map(max, reference[1:], held[1:]))


def _medians(history: Sequence[Observation]) -> Reference:
    return Reference(*(median(getattr(o, name) for o in history) for name in Reference._fields))


def _reference_rank(reference: Reference, num_rows: int) -> float:
    """Rank that the reference would have with fewer rows, since few rows span few directions.

    A sample of n rows adds about 1 / n to the inverse of a participation ratio. With a rank of 20
    over 64 rows, 8 rows give 1 / (1 / 20 + 1 / 8 - 1 / 64) = 6.3.
    """
    if reference.rank <= 0:
        return 0.0
    return 1 / (1 / reference.rank + max(0.0, 1 / num_rows - 1 / reference.num_rows))


def _start_of_fall(
    history: Sequence[Observation], reference: Reference, slow_std_ratio: float
) -> int | None:
    """Step from which the std has been falling, if it is far below the reference; else None."""
    for name in ("std", "relative_std"):
        limit = slow_std_ratio * getattr(reference, name)
        if getattr(history[-1], name) >= limit:
            continue
        for length in _WINDOWS:
            if len(history) < length:
                break
            logs = [_log(getattr(observation, name)) for observation in history[-length:]]
            if _level_after_fall(logs) < _log(limit):
                start = _START_RATIO * getattr(reference, name)
                before = [o.step for o in history if getattr(o, name) >= start]
                return before[-1] if before else history[0].step
    return None


def _log(value: float) -> float:
    return math.log(max(value, 1e-300))


def _level_after_fall(values: list[float]) -> float:
    """Median of the last third of a series that falls steadily; infinite if it does not.

    The medians of the three thirds must fall one after the other: 3.0, 2.9, 2.0 is no steady fall,
    since the first step is less than a quarter of the whole. And the fall must stand out from the
    noise, which is estimated by the median absolute deviations (times 1.4826: sigma of a normal
    distribution).
    """
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
    significant = fall >= _MIN_FALL and fall >= _MIN_ERRORS * error
    return levels[2] if significant and steady else math.inf


class SignTracker:
    """Count signs over consecutive observations, and decide which one to report.

    A severity is reported once, and again after `patience` observations in a row without a sign.
    """

    def __init__(self) -> None:
        # Of each sign that the last observation showed: observations in a row, and the first step.
        self.counts: dict[SignName, int] = {}
        self.first_steps: dict[SignName, int] = {}
        self.num_without_sign = 0  # observations in a row
        self.reported_severity = 0

    @property
    def kind(self) -> CollapseKind | None:
        """Kind of the collapse that goes on, as last reported; None if there is none."""
        return next((s.kind for s in SIGNS if s.severity == self.reported_severity), None)

    def update(self, signs: dict[SignName, int], patience: int) -> tuple[Sign, int] | None:
        """Take the signs of one observation; return a sign to report and its first step."""
        self.counts = {name: self.counts.get(name, 0) + 1 for name in signs}
        self.first_steps = {name: self.first_steps.get(name, step) for name, step in signs.items()}
        self.num_without_sign = 0 if signs else self.num_without_sign + 1
        if self.num_without_sign >= patience:
            self.reported_severity = 0
        for sign in SIGNS:
            needed = patience if sign.needs_patience else 1
            complete = self.counts.get(sign.name, 0) >= needed
            if complete and sign.severity > self.reported_severity:
                self.reported_severity = sign.severity
                return sign, self.first_steps[sign.name]
        return None

    def state_dict(self) -> dict[str, Any]:
        """All attributes: numbers and strings."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name in vars(self):
            setattr(self, name, state[name])
