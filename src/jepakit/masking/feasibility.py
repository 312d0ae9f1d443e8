"""Whether multi-block masks can exist at all, and what to change where they cannot."""

import math
from dataclasses import dataclass, replace

from jepakit.masking.blocks import ScaledSizes, reachable_sizes
from jepakit.masking.context import needed_tokens

__all__ = ["InfeasibleMaskError"]


class InfeasibleMaskError(ValueError):
    """A sampler was asked for masks that cannot exist; says why and what to change.

    Raised at construction, never while sampling.

    Example:
        >>> from jepakit import InfeasibleMaskError, MultiBlockMask
        >>> try:
        ...     MultiBlockMask((14, 14), min_context_coverage=0.85)
        ... except InfeasibleMaskError as error:
        ...     print(str(error).replace(". ", ".\\n"))
        MultiBlockMask on the grid (14, 14): min_context_coverage=0.85 needs 167 context tokens, \
and 167 + 42 (largest target block, 7 x 6) = 209 exceeds 196 (largest context block).
        Change one of: target_scale=(0.1262, 0.1262); min_context_coverage=0.7857

    Source:
        jepakit's own.
    """


@dataclass(frozen=True)
class MultiBlockSpec:
    """The arguments of `MultiBlockMask` that decide whether its masks exist."""

    grid_size: tuple[int, int]
    num_targets: int
    target_scale: tuple[float, float]
    target_aspect_ratio: tuple[float, float]
    context_scale: tuple[float, float]
    min_context_coverage: float
    allow_target_overlap: bool

    def check(self) -> None:
        """Raise `InfeasibleMaskError` with the arithmetic and with changes that would do."""
        problem = self.problem()
        if problem is None:
            return
        changes = self.changes()
        advice = (
            "Change one of: " + "; ".join(changes)
            if changes
            else "No single change is enough: lower target_scale and min_context_coverage"
        )
        raise InfeasibleMaskError(
            f"MultiBlockMask on the grid {self.grid_size}: {problem}. {advice}"
        )

    def problem(self) -> str | None:
        """Why no masks exist, or None."""
        height, width = self.grid_size
        sizes = reachable_sizes(self.grid_size, self.target_scale, self.target_aspect_ratio)
        if not self.allow_target_overlap:
            capacity, h, w = min((height // h * (width // w), h, w) for h, w in sizes)
            if capacity < self.num_targets:
                return (
                    f"num_targets={self.num_targets} blocks of {h} x {w} cannot be disjoint, "
                    f"only {height // h} * {width // w} = {capacity} always fit"
                )
        largest, h, w = max((h * w, h, w) for h, w in sizes)
        need = needed_tokens(self.min_context_coverage, height * width)
        most = ScaledSizes.from_range(self.grid_size, self.context_scale, smallest=0).largest
        if self.allow_target_overlap:
            room, term = largest, f"{largest} (largest target block, {h} x {w})"
        else:
            room = self.num_targets * largest
            term = f"{self.num_targets} * {largest} (disjoint target blocks, up to {h} x {w})"
        if need + room <= most:
            return None
        return (
            f"min_context_coverage={self.min_context_coverage:g} needs {need} context tokens, and "
            f"{need} + {term} = {need + room} exceeds {most} (largest context block)"
        )

    def changes(self) -> list[str]:
        """Single changes of an argument, each enough, written as the argument."""
        low, high = self.target_scale
        # No size shrinks when a scale grows, so the scales that will do are an interval.
        step = 1e-4
        works, fails = 0, math.ceil(high / step)
        while fails - works > 1:
            middle = (works + fails) // 2
            if self._with_scale(middle * step).problem() is None:
                works = middle
            else:
                fails = middle
        found = []
        if works > 0:
            spec = self._with_scale(works * step)
            found.append(f"target_scale={spec.target_scale}")
        size = math.prod(self.grid_size)
        coverage = next(
            (
                need / size
                for need in range(needed_tokens(self.min_context_coverage, size) - 1, 0, -1)
                if replace(self, min_context_coverage=need / size).problem() is None
            ),
            None,
        )
        if coverage is not None:
            found.append(f"min_context_coverage={math.floor(coverage * 1e4) / 1e4}")
        if self.context_scale[1] < 1.0:
            wider = replace(self, context_scale=(self.context_scale[0], 1.0))
            if wider.problem() is None:
                found.append(f"context_scale={wider.context_scale}")
        if not self.allow_target_overlap:
            fewer = next(
                (
                    count
                    for count in range(self.num_targets - 1, 0, -1)
                    if replace(self, num_targets=count).problem() is None
                ),
                None,
            )
            if fewer is not None:
                found.append(f"num_targets={fewer}")
            if replace(self, allow_target_overlap=True).problem() is None:
                found.append("allow_target_overlap=True")
        return found

    def _with_scale(self, high: float) -> "MultiBlockSpec":
        high = round(high, 4)
        return replace(self, target_scale=(min(self.target_scale[0], high), high))
