"""`CollapseMonitor`: watches features during training and reports a collapse."""

import warnings
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributed import ProcessGroup

from jepakit._checks import as_choice, as_fraction, as_int, check_process_group, check_rows
from jepakit.diagnostics.collapse.criteria import (
    MIN_ROWS,
    REFERENCE_LENGTH,
    SignName,
    SignTracker,
    find_signs,
    update_reference,
)
from jepakit.diagnostics.collapse.observation import DeadDimensions, Observation, Reference, measure
from jepakit.diagnostics.collapse.report import Collapse, CollapseError, CollapseWarning

__all__ = ["CollapseMonitor"]

# Number of observations that are kept and saved.
_HISTORY_LENGTH = 10_000
# Batches in a row with fewer than MIN_ROWS rows, after which a warning is issued.
_SMALL_BATCHES = 10


class CollapseMonitor:
    r"""Monitor that warns or raises when features collapse: fully, in dimensions, or slowly.

    Pass it what the loss compares: the teacher's or the student's features, pooled. One batch is
    one observation: with the covariance $C$ of its rows, $\sigma = \sqrt{\mathrm{tr}\, C}$, the
    relative $\rho = \sigma / \mathrm{rms} \|x\|$, the effective rank $r$, and for each dimension
    its standard deviation $s_j$. The *reference* $\sigma_0, \rho_0, r_0$ is the median over the
    first 10 observations, and is raised to any median over 100 that is higher.

    - *full*: $\rho < 10^{-3}$, or $\sigma < a\, \sigma_0$, or $\rho < a\, \rho_0$
    - *line* (dimensional): less than $10^{-3}$ of the variance is off the first principal axis
    - *rank* (dimensional): $r - 1 < b\, (r_0 - 1)$
    - *dead* (dimensional): more than a fraction $c$ of the dimensions is dead
    - *slow*: $\sigma < s\, \sigma_0$ or $\rho < s\, \rho_0$, and still falling

    with $a$ = `std_ratio`, $b$ = `rank_ratio`, $c$ = `dead_ratio`, $s$ = `slow_std_ratio`. The
    first rule of *full*, *line* and *dead* need no reference, so features that are constant, of
    rank one or half dead from the first step on are reported too. A sign must show in `patience`
    observations in a row. In detail:

    - A dimension is dead if $s_j$ is at most $10^{-3}$ of the upper quartile of all $s$, or if
      $s_j / s_{0j}$ is below 0.05 of the upper quartile of these ratios, or of 1 where they
      have grown, with $s_{0j}$ the largest of the first 10 observations. It must be dead in each of
      `patience` observations, so that a sparse dimension may be zero in one batch.
    - Falling: over the last 30, 120 or 480 observations, the medians of the three thirds fall one
      after the other, by at least 10 % in all and by four standard errors.
    - Line, rank and dead dimensions are judged in batches of at least 8 rows; ten batches in a row
      of fewer cause a warning. Where a batch has fewer rows than the reference, $1 / r_0$ is raised
      by $1 / n - 1 / n_0$, since few rows span few directions.
    - NaN or infinity is reported at once.

    A collapse is reported once, and again if it becomes more severe (slow, then dimensional, then
    full) or returns after `patience` observations without a sign.

    The first 10 calls are observed, since the reference is the state before training, and then one
    call in `every`. An observation solves an eigenvalue problem of the smaller of width and rows on
    the features' device, and needs one host synchronisation. Use `every=10` on a GPU.

    Args:
        action: `"warn"` issues a `CollapseWarning`, `"raise"` raises a `CollapseError`, `"record"`
            only returns the report.
        every: Calls per observation after the first 10; `patience` and windows count observations.
        patience: Observations in a row that must show a sign.
        std_ratio: Fraction of the reference below which the std is a full collapse.
        slow_std_ratio: Fraction of the reference below which a std that still falls is a slow
            collapse. A regulariser that reduces large features looks the same in its first steps.
        rank_ratio: Fraction of the reference's rank (minus 1) below which it is a collapse.
        dead_ratio: Fraction of dimensions that may be dead.
        process_group: Observe the joined batch of all ranks of this group, so that all of them
            warn or raise together. Every rank must call. Without it, one rank's batch is enough,
            but with `"raise"` the other ranks would wait for the one that stopped.

    Raises:
        ValueError: If the width of the features changes.

    Example:
        >>> import torch
        >>> monitor = CollapseMonitor(action="record")
        >>> generator = torch.Generator().manual_seed(0)
        >>> for step in range(40):
        ...     features = torch.randn(32, 64, generator=generator)
        ...     if step >= 20:
        ...         features[:, 3:] *= 0.01
        ...     collapse = monitor.update(features)
        ...     if collapse:
        ...         print(collapse.kind, collapse.sign, collapse.first_step, collapse.step)
        dimensional rank 20 24
    """

    def __init__(
        self,
        *,
        action: Literal["warn", "raise", "record"] = "warn",
        every: int = 1,
        patience: int = 5,
        std_ratio: float = 0.05,
        slow_std_ratio: float = 0.5,
        rank_ratio: float = 0.2,
        dead_ratio: float = 1 / 3,
        process_group: ProcessGroup | None = None,
    ) -> None:
        check_process_group(process_group)
        self.action = as_choice("action", action, ("warn", "raise", "record"))
        self.every = as_int("every", every, minimum=1)
        self.patience = as_int("patience", patience, minimum=1)
        self.std_ratio = as_fraction("std_ratio", std_ratio, open_low=True)
        self.slow_std_ratio = as_fraction("slow_std_ratio", slow_std_ratio, open_low=True)
        self.rank_ratio = as_fraction("rank_ratio", rank_ratio, open_low=True)
        self.dead_ratio = as_fraction("dead_ratio", dead_ratio, open_low=True)
        self.process_group = process_group
        self.num_calls = 0
        self._num_small_batches = 0  # in a row
        self._history: list[Observation] = []
        self._reference: Reference | None = None
        self._tracker, self._dead = SignTracker(), DeadDimensions()

    @property
    def history(self) -> list[Observation]:
        """The last 10,000 observations, oldest first."""
        return list(self._history)

    @property
    def reference(self) -> Reference | None:
        """Levels that the run is compared with; None during the first 10 observations."""
        return self._reference

    def update(
        self,
        features: Float[Tensor, "*batch d"],
        valid: Bool[Tensor, "*batch"] | None = None,
        *,
        step: int | None = None,
    ) -> Collapse | None:
        """Observe a batch; warn or raise if it completes the evidence of a collapse.

        Args:
            features: Feature vectors; all axes but the last are rows. A batch with fewer than 2
                valid rows is skipped.
            valid: True where a row counts. All rows if None.
            step: The training step, for the report; the number of calls so far if None.

        Returns:
            The report, at the observation that completes the evidence; else None.
        """
        step = self.num_calls if step is None else as_int("step", step)
        self.num_calls += 1
        if self.num_calls > REFERENCE_LENGTH and (self.num_calls - 1) % self.every:
            return None
        check_rows("features", features, valid, minimum=0)
        dim = features.shape[-1]
        if self._dead.dim not in (None, dim):
            shape, before = tuple(features.shape), self._dead.dim
            raise ValueError(f"features {shape}: must have the width of those before, {before}")
        observation, finite = self._observe(features, valid, step)
        self._warn_of_small_batches(observation.num_rows)
        if finite and observation.num_rows < 2:
            return None
        to_report = self._tracker.update(self._find_signs(observation, finite), self.patience)
        if to_report is None:
            return None
        sign, first_step = to_report
        collapse = Collapse(
            kind=sign.kind,
            sign=sign.name,
            step=step,
            first_step=first_step,
            observation=observation,
            reference=self._reference,
            dim=dim,
        )
        if self.action == "raise":
            raise CollapseError(collapse)
        if self.action == "warn":
            warnings.warn(CollapseWarning(str(collapse)), stacklevel=2)
        return collapse

    def _observe(
        self, features: Tensor, valid: Tensor | None, step: int
    ) -> tuple[Observation, bool]:
        """Measure a batch; also return whether all of its valid rows are finite."""
        *scalars, is_finite, variance = measure(features, valid, self.process_group)
        num_rows = scalars[0]
        dead_ratio = self._dead.update(
            variance,
            usable=(is_finite > 0) & (num_rows >= 2),
            judged=(is_finite > 0) & (num_rows >= MIN_ROWS),
            set_reference=self._reference is None,
            patience=self.patience,
        )
        # The only host synchronisation: all numbers in one transfer.
        rows, *others, finite = torch.stack([*scalars, dead_ratio, is_finite]).tolist()
        return Observation(step, int(rows), *others), bool(finite)

    def _find_signs(self, observation: Observation, finite: bool) -> dict[SignName, int]:
        if not finite:  # enters neither history nor reference
            return {"not finite": observation.step}
        self._history.append(observation)
        del self._history[:-_HISTORY_LENGTH]
        signs = find_signs(
            self._history,
            self._reference,
            std_ratio=self.std_ratio,
            slow_std_ratio=self.slow_std_ratio,
            rank_ratio=self.rank_ratio,
            dead_ratio=self.dead_ratio,
            patience=self.patience,
        )
        self._reference = update_reference(self._history, self._reference)
        return signs

    def _warn_of_small_batches(self, num_rows: int) -> None:
        self._num_small_batches = self._num_small_batches + 1 if num_rows < MIN_ROWS else 0
        if self._num_small_batches == _SMALL_BATCHES:
            unchecked = "line, rank and dead dimensions are not" if num_rows > 1 else "nothing is"
            warnings.warn(
                f"CollapseMonitor: {_SMALL_BATCHES} batches in a row had fewer than {MIN_ROWS} "
                f"rows, the last one {num_rows}: {unchecked} checked; pass more rows",
                stacklevel=3,
            )

    def state_dict(self) -> dict[str, Any]:
        """Full state as tensors, numbers and strings, for `weights_only=True`."""
        num_fields = len(Observation._fields)
        return {
            "num_calls": self.num_calls,
            "num_small_batches": self._num_small_batches,
            "history": torch.tensor(self._history, dtype=torch.float64).view(-1, num_fields),
            "reference": None if self._reference is None else list(self._reference),
            "tracker": self._tracker.state_dict(),
            "dead": self._dead.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the `state` of another monitor with the same arguments."""
        self.num_calls = state["num_calls"]
        self._num_small_batches = state["num_small_batches"]
        self._history = [
            Observation(int(step), int(num_rows), *others)
            for step, num_rows, *others in state["history"].tolist()
        ]
        reference = state["reference"]
        self._reference = None if reference is None else Reference(*reference)
        self._tracker.load_state_dict(state["tracker"])
        self._dead.load_state_dict(state["dead"])

    def __repr__(self) -> str:
        names = (
            "action", "every", "patience", "std_ratio", "slow_std_ratio", "rank_ratio", "dead_ratio"
        )  # fmt: skip
        arguments = [f"{name}={getattr(self, name)!r}" for name in names]
        group = [] if self.process_group is None else ["process_group=..."]
        return f"CollapseMonitor({', '.join([*arguments, *group])})"

    def __str__(self) -> str:
        if not self._history:
            return f"{self!r}: no observation yet"
        last, reference = self._history[-1], self._reference
        text = (
            f"{self!r}: {self._tracker.kind or 'no'} collapse at step {last.step}, total std "
            f"{last.std:.3g} and effective rank {last.rank:.1f}"
        )
        if reference is None:
            return text
        return f"{text} (reference: {reference.std:.3g} and {reference.rank:.1f})"
