"""Reports of the collapse monitor: `Collapse`, and the warning and the error that carry it."""

from dataclasses import dataclass

from jepakit.diagnostics.collapse.criteria import SIGNS, CollapseKind, SignName
from jepakit.diagnostics.collapse.observation import Observation, Reference

__all__ = ["Collapse", "CollapseError", "CollapseWarning"]


class CollapseWarning(UserWarning):
    """Warning of `CollapseMonitor` with `action="warn"`."""


class CollapseError(RuntimeError):
    """Error of `CollapseMonitor` with `action="raise"`.

    Args:
        collapse: The report, also available as an attribute.
    """

    def __init__(self, collapse: "Collapse") -> None:
        super().__init__(str(collapse))
        self.collapse = collapse


@dataclass(frozen=True, kw_only=True)
class Collapse:
    """Report of `CollapseMonitor`; `print` it for the full text.

    Args:
        kind: `"full"`, `"dimensional"`, `"slow"` or `"not finite"`.
        sign: The rule that found it: `"full"`, `"line"`, `"rank"`, `"dead"`, `"slow"` or
            `"not finite"`.
        step: The step of the observation that completed the evidence.
        first_step: The first step that shows the sign.
        observation: The observation at `step`.
        reference: Levels of the run before; None if it has been like this from the beginning.
        dim: Width of the features.

    Example:
        >>> import torch
        >>> from jepakit.diagnostics import CollapseMonitor
        >>> monitor = CollapseMonitor(action="record")
        >>> for step in range(5):
        ...     collapse = monitor.update(torch.ones(16, 8))
        >>> print(collapse)
        Full collapse at step 4 (first sign at step 0): all feature vectors are nearly identical.
          total std               0
          relative std            0
          effective rank        0.0 of 8
          dead dimensions         8 of 8
        Possible remedies: no gradient through the targets, and a teacher that moves slowly: ...
    """

    kind: CollapseKind
    sign: SignName
    step: int
    first_step: int
    observation: Observation
    reference: Reference | None
    dim: int

    def __str__(self) -> str:
        sign = next(sign for sign in SIGNS if sign.name == self.sign)
        finite = self.kind != "not finite"
        title = f"{self.kind.capitalize()} collapse" if finite else "Non-finite features"
        head = f"{title} at step {self.step} (first sign at step {self.first_step}): {sign.text}."
        remedies = f"Possible remedies: {sign.advice.format(first_step=self.first_step)}"
        return "\n".join([head, *(self._table() if finite else []), remedies])

    def _table(self) -> list[str]:
        now, reference = self.observation, self.reference
        lines = [
            f"  total std          {now.std:>6.3g}",
            f"  relative std       {now.relative_std:>6.2g}",
            f"  effective rank     {now.rank:>6.1f} of {self.dim}",
            f"  dead dimensions    {round(now.dead_ratio * self.dim):>6} of {self.dim}",
        ]
        if reference is not None:
            texts = f"{reference.std:.3g}", f"{reference.relative_std:.2g}", f"{reference.rank:.1f}"
            width = max(map(len, lines)) + 2
            for i, text in enumerate(texts):
                lines[i] = f"{lines[i]:<{width}}(reference {text})"
        return lines
