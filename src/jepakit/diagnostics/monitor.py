"""`CollapseMonitor`: watches features during training and says when they die."""

import warnings
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributed import ProcessGroup

from jepakit._checks import check_choice, check_fraction, check_int, check_process_group
from jepakit.diagnostics._dead import DeadDimensions
from jepakit.diagnostics._episode import KINDS, Episode
from jepakit.diagnostics._observation import measure
from jepakit.diagnostics._rows import check_features
from jepakit.diagnostics._signs import FIRST, LEAST_ROWS, better_reference, signs_of
from jepakit.diagnostics.collapse import (
    Collapse,
    CollapseError,
    CollapseWarning,
    Observation,
    Reference,
)

__all__ = ["CollapseMonitor"]

# The observations that are kept, and saved.
_HISTORY = 10_000


class CollapseMonitor:
    r"""Watches features, and warns or raises when they collapse: fully, in dimensions, or slowly.

    Feed it what the loss compares: the teacher's or the student's features, pooled. One batch is
    one observation: with the covariance $C$ of its rows, $\sigma = \sqrt{\mathrm{tr}\, C}$, the
    relative $\rho = \sigma / \mathrm{rms} \|x\|$, the effective rank $r$, and for each dimension
    its standard deviation $s_j$. The *reference* $\sigma_0, \rho_0, r_0$ is the median over the
    first 10 observations, and is raised to any median over 100 that is higher. So a run that starts
    with a low rank and keeps it is left in peace, and one that rises and falls is not.

    - *full*: $\rho < 10^{-3}$, or $\sigma < a\, \sigma_0$, or $\rho < a\, \rho_0$
    - *dimensional*, line: less than $10^{-3}$ of the variance is off one line
    - *dimensional*, rank: $r - 1 < b\, (r_0 - 1)$
    - *dimensional*, dead: more than a share $c$ of the dimensions is dead
    - *slow*: $\sigma < s\, \sigma_0$ or $\rho < s\, \rho_0$, and it is still falling

    with $a$ = `std_fall`, $b$ = `rank_fall`, $c$ = `dead_share`, $s$ = `slow_fall`. The first rule
    of full, line and dead need no reference, so features that are constant, of rank one or half
    dead from the first step on are found as well. Everything must hold for `patience` observations
    in a row: one odd batch is nothing. In detail:

    - A dimension is dead if $s_j$ is at most $10^{-3}$ of the upper quartile of all $s$, or if
      $s_j / s_{0j}$ is below 0.05 of the upper quartile of these ratios, or of 1 where they
      have grown, with $s_{0j}$ the largest of the first 10 observations; in each of `patience`
      observations, so that a sparse dimension may miss a batch.
    - Falling: over the last 30, 120 or 480 observations, the medians of the three thirds fall one
      after the other, by at least 10 % in all and by four standard errors.
    - Rank and dead dimensions are judged in batches of 8 rows and more. Where a batch has fewer
      rows than the reference, $1 / r_0$ is raised by $1 / n - 1 / n_0$, since few rows span few
      directions; a batch smaller than the width is fine. Ten batches in a row of fewer than 8 rows
      are warned about.
    - NaN or infinity, `patience` times in a row, is told too.

    What goes on is told once, and again if it gets worse (slow, then dimensional, then full) or
    comes back after `patience` observations without a sign.

    The first 10 calls are observed, since the reference is the state before training, and then one
    of `every`; the others return at once and touch nothing. An observing call computes on the
    features' device, with an eigenvalue problem of the smaller of width and rows, and reads seven
    numbers back: its only wait for the device. Use `every=10` on a GPU.

    Args:
        action: `"warn"` issues a `CollapseWarning`, `"raise"` a `CollapseError`, `"record"` only
            returns and keeps what was found.
        every: Calls per observation after the first 10; `patience` and windows count observations.
        patience: Observations in a row that must show a sign.
        std_fall: Fraction of the reference below which the spread is a full collapse.
        slow_fall: Fraction of the reference below which a spread that still falls is slow collapse.
            A regulariser that pulls large features to a smaller scale looks the same for a while.
        rank_fall: Fraction of the reference's rank (minus 1) below which it is a collapse.
        dead_share: Fraction of dimensions that may be dead.
        process_group: Observe the joined batch of all ranks of this group, so that all of them
            warn or raise together. Every rank must call. Without it, one rank's batch will do, but
            `"raise"` on one rank leaves the others waiting.

    Raises:
        TypeError: If `every` or `patience` is not an int or a fraction not a number.
        ValueError: If `action` is another, `every` or `patience` below 1, or a fraction not in
            (0, 1].

    Example:
        >>> import torch
        >>> from jepakit import CollapseMonitor
        >>> monitor = CollapseMonitor(action="record")
        >>> generator = torch.Generator().manual_seed(0)
        >>> for step in range(40):
        ...     features = torch.randn(32, 64, generator=generator)
        ...     if step >= 20:
        ...         features[:, 3:] *= 0.01
        ...     found = monitor.update(features)
        ...     if found:
        ...         print(found.kind, found.sign, found.since, found.step)
        dimensional rank 20 24

    Source:
        jepakit's own. The reference is the run's own past, since healthy small encoders differ by
        far: `examples/ijepa.py` learns at an effective rank of 1.6 of 64.
    """

    def __init__(
        self,
        *,
        action: Literal["warn", "raise", "record"] = "warn",
        every: int = 1,
        patience: int = 5,
        std_fall: float = 0.05,
        slow_fall: float = 0.5,
        rank_fall: float = 0.2,
        dead_share: float = 1 / 3,
        process_group: ProcessGroup | None = None,
    ) -> None:
        check_choice("action", action, ("warn", "raise", "record"))
        check_int("every", every, minimum=1)
        check_int("patience", patience, minimum=1)
        check_fraction("std_fall", std_fall, open_low=True)
        check_fraction("slow_fall", slow_fall, open_low=True)
        check_fraction("rank_fall", rank_fall, open_low=True)
        check_fraction("dead_share", dead_share, open_low=True)
        check_process_group(process_group)
        self.action, self.every, self.patience = action, every, patience
        self.std_fall, self.slow_fall = std_fall, slow_fall
        self.rank_fall, self.dead_share = rank_fall, dead_share
        self.process_group = process_group
        self.calls = self._small = 0
        self._history: list[Observation] = []
        self._reference: Reference | None = None
        self._episode, self._dead = Episode(), DeadDimensions()

    @property
    def history(self) -> list[Observation]:
        """The last 10,000 observations, oldest first."""
        return list(self._history)

    @property
    def reference(self) -> Reference | None:
        """What the run is compared with; None in the first 10 observations."""
        return self._reference

    def update(
        self,
        features: Float[Tensor, "*batch d"],
        valid: Bool[Tensor, "*batch"] | None = None,
        *,
        step: int | None = None,
    ) -> Collapse | None:
        """Look at a batch, and warn or raise if it makes a collapse certain.

        Args:
            features: Feature vectors; all axes but the last are rows. A batch with fewer than 2
                valid rows is passed over.
            valid: True where a row counts. All rows if None.
            step: The training step, for the story; the number of calls so far if None.

        Returns:
            What was found, at the observation that made it certain; else None.

        Raises:
            TypeError: If `features` is not floating point or `valid` not bool.
            ValueError: If shapes do not fit, or the width is another than before.
            CollapseError: If there is a collapse and `action` is `"raise"`.
        """
        at = self.calls if step is None else step
        self.calls += 1
        if self.calls > FIRST and (self.calls - 1) % self.every:
            return None
        check_features("features", features, valid, minimum=0)
        dim = features.shape[-1]
        if self._dead.runs is not None and len(self._dead.runs) != dim:
            raise ValueError(
                f"features {tuple(features.shape)}: must have the width of those before, "
                f"{len(self._dead.runs)}"
            )
        seen, finite = self._observe(features, valid, at)
        self._tell_of_small_batches(seen.rows)
        if finite and seen.rows < 2:
            return None
        certain = self._episode.observe(self._signs(seen, finite), self.patience)
        if certain is None:
            return None
        sign, since = certain
        found = Collapse(
            kind=KINDS[sign][1],
            sign=sign,
            step=at,
            since=since,
            seen=seen,
            reference=self._reference,
            dim=dim,
        )
        if self.action == "raise":
            raise CollapseError(found)
        if self.action == "warn":
            warnings.warn(CollapseWarning(str(found)), stacklevel=2)
        return found

    def _tell_of_small_batches(self, rows: int) -> None:
        """Once, after some in a row, that they are too small for what the user counts on."""
        self._small = self._small + 1 if rows < LEAST_ROWS else 0
        if self._small == FIRST:
            unseen = "rank and dead dimensions are not" if rows > 1 else "nothing is"
            warnings.warn(
                f"CollapseMonitor: {FIRST} batches in a row had fewer than {LEAST_ROWS} rows, the "
                f"last one {rows}: {unseen} judged; give it more rows, or a process_group",
                stacklevel=3,
            )

    def _observe(
        self, features: Tensor, valid: Tensor | None, step: int
    ) -> tuple[Observation, bool]:
        figures, variance = measure(features, valid, self.process_group)
        share = self._dead.observe(
            variance,
            judged=figures[0] >= LEAST_ROWS,
            finite=(figures[-1] > 0) & (figures[0] >= 2),
            referring=self._reference is None,
            patience=self.patience,
        )
        # The one place where numbers are read back.
        rows, std, relative, rank, off_line, finite, dead = torch.stack(
            [*figures.unbind(), share]
        ).tolist()
        return Observation(step, int(rows), std, relative, rank, off_line, dead), bool(finite)

    def _signs(self, seen: Observation, finite: bool) -> dict[str, int]:
        if not finite:  # enters neither history nor reference
            return {"not finite": seen.step}
        self._history.append(seen)
        del self._history[:-_HISTORY]
        signs = signs_of(
            self._history,
            self._reference,
            std_fall=self.std_fall,
            slow_fall=self.slow_fall,
            rank_fall=self.rank_fall,
            dead_share=self.dead_share,
            patience=self.patience,
        )
        self._reference = better_reference(self._history, self._reference)
        return signs

    def state_dict(self) -> dict[str, Any]:
        """All that it remembers, as tensors, numbers and strings, for `weights_only=True`."""
        return {
            "calls": self.calls,
            "history": torch.tensor(self._history, dtype=torch.float64).view(-1, 7),
            "reference": None if self._reference is None else list(self._reference),
            "episode": self._episode.state_dict(),
            "dead": self._dead.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another monitor of the same arguments was.

        Args:
            state: What `state_dict` gave.
        """
        self.calls = state["calls"]
        self._history = [
            Observation(int(step), int(rows), *others)
            for step, rows, *others in state["history"].tolist()
        ]
        reference = state["reference"]
        self._reference = None if reference is None else Reference(*reference)
        self._episode.load_state_dict(state["episode"])
        self._dead.load_state_dict(state["dead"])

    def __repr__(self) -> str:
        names = ("action", "every", "patience", "std_fall", "slow_fall", "rank_fall", "dead_share")
        options = [f"{name}={getattr(self, name)!r}" for name in names]
        group = [] if self.process_group is None else ["process_group=..."]
        return f"CollapseMonitor({', '.join([*options, *group])})"

    def __str__(self) -> str:
        if not self._history:
            return f"{self!r}: has seen nothing yet"
        seen, before = self._history[-1], self._reference
        was = "" if before is None else f" (reference: {before.std:.3g} and {before.rank:.1f})"
        told = {grave: f"{kind} collapse" for grave, kind in KINDS.values()}
        return (
            f"{self!r}: {told.get(self._episode.told, 'no collapse')} at step {seen.step}, with a "
            f"standard deviation of {seen.std:.3g} and an effective rank of {seen.rank:.1f}{was}"
        )
