"""What a collapse is called, and how it is told."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

__all__ = [
    "Collapse",
    "CollapseError",
    "CollapseKind",
    "CollapseWarning",
    "Observation",
    "Reference",
]

CollapseKind = Literal["full", "dimensional", "slow", "not finite"]

_WHAT = {
    "full": "all features are nearly one and the same vector",
    "line": "all features lie on one line",
    "rank": "the features have lost most of their directions",
    "dead": "many dimensions no longer vary",
    "slow": "the features draw together, step by step",
    "not finite": "features hold NaN or infinity",
}
_HELPS = {
    "full": (
        "the target must get no gradient and the teacher must move slowly: a higher momentum, a "
        "lower learning rate with warm-up, or a term against collapse on pooled features (vicreg, "
        "sigreg). Go back to a checkpoint from before step {since}; what is collapsed seldom "
        "comes back by itself."
    ),
    "dimensional": (
        "a lower learning rate or a higher teacher momentum, and a term that sees correlations, on "
        "pooled features: vicreg, barlow or sigreg. Look for a ReLU at the end of a head, and for "
        "targets that are too easy (blocks too small, next to the context)."
    ),
    "slow": (
        "nothing in the loss seems to hold the features' scale: normalize_targets, a variance_loss "
        "on pooled features, no weight decay on the gains of norms, a higher teacher momentum."
    ),
    "not finite": (
        "a lower learning rate, gradient clipping, and loss and softmax in float32 under autocast. "
        "Go back to a checkpoint from before step {since}."
    ),
}


class Observation(NamedTuple):
    """What `CollapseMonitor` saw in one batch.

    `step` is that of the batch and `rows` the number of feature vectors; `std` is the root of the
    total variance, `relative_std` the same in units of the root mean square length, in [0, 1];
    `rank` is the effective rank, `off_line` the share of the variance that is not along the first
    principal direction, and `dead` the share of dimensions that have not varied for `patience`
    observations.

    Example:
        >>> import torch
        >>> from jepakit.diagnostics import CollapseMonitor
        >>> monitor = CollapseMonitor()
        >>> monitor.update(torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
        >>> round(monitor.history[0].off_line, 3)
        0.1

    Source:
        jepakit's own.
    """

    step: int
    rows: int
    std: float
    relative_std: float
    rank: float
    off_line: float
    dead: float


class Reference(NamedTuple):
    """The best that a run has held so far, with which it is compared.

    The fields are medians of those of `Observation`.

    Example:
        >>> import torch
        >>> from jepakit.diagnostics import CollapseMonitor
        >>> monitor = CollapseMonitor()
        >>> cross = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0], [0.0, -3.0]])
        >>> for _ in range(10):
        ...     monitor.update(cross.repeat(2, 1))
        >>> round(monitor.reference.rank, 3)
        2.0

    Source:
        jepakit's own.
    """

    rows: float
    std: float
    relative_std: float
    rank: float


class CollapseWarning(UserWarning):
    """Features have collapsed; `CollapseMonitor` with `action="warn"`."""


class CollapseError(RuntimeError):
    """Features have collapsed; `CollapseMonitor` with `action="raise"`.

    Args:
        collapse: What was found, an attribute too.
    """

    def __init__(self, collapse: "Collapse") -> None:
        super().__init__(str(collapse))
        self.collapse = collapse


@dataclass(frozen=True, kw_only=True)
class Collapse:
    """What `CollapseMonitor` found; `print` it for the whole story.

    Args:
        kind: `"full"`, `"dimensional"`, `"slow"` or `"not finite"`.
        sign: The rule that spoke: `"full"`, `"line"`, `"rank"`, `"dead"`, `"slow"`, `"not finite"`.
        step: The step at which it was certain.
        since: The first step that shows it.
        seen: The observation at `step`.
        reference: What the run had held before; None if it has been like this from the beginning.
        dim: Width of the features.

    Example:
        >>> import torch
        >>> from jepakit.diagnostics import CollapseMonitor
        >>> monitor = CollapseMonitor(action="record")
        >>> for step in range(5):
        ...     found = monitor.update(torch.ones(16, 8))
        >>> print(found)
        Full collapse at step 4, since step 0: all features are nearly one and the same vector.
          total standard deviation        0
          relative to their length        0
          effective rank                0.0 of 8
          dead dimensions                 8 of 8
        What usually helps: the target must get no gradient and the teacher must move slowly: ...

    Source:
        jepakit's own.
    """

    kind: CollapseKind
    sign: str
    step: int
    since: int
    seen: Observation
    reference: Reference | None
    dim: int

    def __str__(self) -> str:
        head = (
            f"{self.kind.capitalize()} collapse at step {self.step}, since step {self.since}: "
            f"{_WHAT[self.sign]}."
        )
        if self.kind == "not finite":
            head = f"Step {self.step}, since step {self.since}: {_WHAT[self.sign]}."
        helps = f"What usually helps: {_HELPS[self.kind].format(since=self.since)}"
        return "\n".join([head, *self._figures(), helps])

    def _figures(self) -> list[str]:
        if self.kind == "not finite":
            return []
        seen, before = self.seen, self.reference
        rows = [
            ("total standard deviation", f"{seen.std:.3g}", "", "std", ".3g"),
            ("relative to their length", f"{seen.relative_std:.2g}", "", "relative_std", ".2g"),
            ("effective rank", f"{seen.rank:.1f}", f"of {self.dim}", "rank", ".1f"),
            ("dead dimensions", f"{round(seen.dead * self.dim)}", f"of {self.dim}", "", ""),
        ]
        lines = []
        for label, value, unit, name, form in rows:
            was = f"was {getattr(before, name):{form}}" if before is not None and name else ""
            line = f"  {label:<26} {value:>6} {unit:<{len(f'of {self.dim}')}}  {was}"
            lines.append(line.rstrip())
        return lines
