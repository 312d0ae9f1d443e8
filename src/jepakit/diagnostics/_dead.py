"""Which dimensions no longer vary: the one thing that the collapse monitor keeps per dimension."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["DeadDimensions"]

# Dead: below this share of what an upper quartile of the dimensions shows, or below this share of
# its own reference, in units of what the upper quartile has kept of its own. Where that has grown,
# the others have not fallen.
_DEAD, _DIED = 1e-3, 0.05


class DeadDimensions:
    """For how many observations in a row each dimension has been dead; stays on the device."""

    def __init__(self) -> None:
        self.runs: Tensor | None = None
        self.reference: Tensor | None = None  # largest variance while the reference was made

    def observe(
        self, variance: Tensor, *, judged: Tensor, finite: Tensor, referring: bool, patience: int
    ) -> Tensor:
        """Count on, and give the share of dimensions that are dead since `patience` observations.

        Batches that are not `judged` change nothing, and those that are not `finite` even less.
        """
        if self.runs is None or self.reference is None:
            self.runs, self.reference = torch.zeros_like(variance), torch.zeros_like(variance)
        runs, reference = self.runs.to(variance.device), self.reference.to(variance.device)
        std = variance.sqrt()
        dead = std <= _DEAD * _upper_quartile(std)
        if referring:
            self.reference = torch.where(finite, torch.maximum(reference, variance), reference)
        else:
            known = reference > 0
            kept = torch.where(known, std / reference.sqrt(), 0)
            dead = dead | (known & (kept < _DIED * _upper_quartile(kept).clamp(max=1)))
        self.runs = torch.where(judged & finite, (runs + 1) * dead, runs)
        return (self.runs >= patience).double().mean()

    def state_dict(self) -> dict[str, Any]:
        """Both tensors, or None where nothing has been seen."""
        return {"runs": self.runs, "reference": self.reference}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.runs, self.reference = (
            None if state[name] is None else state[name].clone() for name in ("runs", "reference")
        )


def _upper_quartile(values: Tensor) -> Tensor:
    found: Tensor = values.sort().values[(3 * len(values)) // 4]
    return found
