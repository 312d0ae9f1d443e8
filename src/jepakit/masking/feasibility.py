"""Whether multi-block masks can exist at all, and what to change where they cannot."""

import math
from dataclasses import dataclass, fields, replace
from functools import cached_property

from jepakit.masking.blocks import ScaledSizes, reachable_sizes
from jepakit.masking.context import needed_tokens

__all__ = ["InfeasibleMaskError"]

# Scales are suggested to four digits.
_STEP = 1e-4


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
    """The arguments of `MultiBlockMask` that decide whether its masks exist, and what follows."""

    grid_size: tuple[int, int]
    num_targets: int
    target_scale: tuple[float, float]
    target_aspect_ratio: tuple[float, float]
    context_scale: tuple[float, float]
    min_context_coverage: float
    allow_target_overlap: bool
    context_length: str | int

    @cached_property
    def size(self) -> int:
        """Positions on the grid."""
        return math.prod(self.grid_size)

    @cached_property
    def need(self) -> int:
        """Context tokens that every sample has at least."""
        return needed_tokens(self.min_context_coverage, self.size)

    @cached_property
    def target_sizes(self) -> list[tuple[int, int]]:
        """Every size (height, width) that a target can have."""
        return reachable_sizes(self.grid_size, self.target_scale, self.target_aspect_ratio)

    @cached_property
    def largest_target(self) -> int:
        """Cells of the largest target block."""
        return max(h * w for h, w in self.target_sizes)

    @cached_property
    def room(self) -> int:
        """Cells that a context block must have beyond `need`."""
        return self.largest_target * (1 if self.allow_target_overlap else self.num_targets)

    @cached_property
    def largest_context(self) -> int:
        """Cells of the largest context block."""
        return ScaledSizes.from_range(self.grid_size, self.context_scale, smallest=0).largest

    @cached_property
    def context_sizes(self) -> ScaledSizes:
        """Sizes of context blocks that leave `need` whatever the targets are."""
        return ScaledSizes.from_range(
            self.grid_size, self.context_scale, smallest=self.need + self.room
        )

    @cached_property
    def strips(self) -> tuple[int, int]:
        """Most strips and slots of a strip packing; (0, 0) where free placement cannot dead-end."""
        height, width = self.grid_size
        if self.allow_target_overlap or all(
            # A placed block bars at most (2h - 1)(2w - 1) places.
            (self.num_targets - 1) * (2 * h - 1) * (2 * w - 1) < (height - h + 1) * (width - w + 1)
            for h, w in self.target_sizes
        ):
            return 0, 0
        return (
            height // min(h for h, _ in self.target_sizes),
            width // min(w for _, w in self.target_sizes),
        )

    def check(self) -> None:
        """Raise `InfeasibleMaskError` with the arithmetic and with changes that would do."""
        problem = self.problem()
        if problem is None:
            return
        changes = self.changes()
        advice = (
            "Change one of: " + "; ".join(changes)
            if changes
            else "No single change is enough: lower target_scale and min_context_coverage, or take "
            "a larger grid"
        )
        raise InfeasibleMaskError(
            f"MultiBlockMask on the grid {self.grid_size}: {problem}. {advice}"
        )

    def problem(self) -> str | None:
        """Why no masks exist, or None."""
        height, width = self.grid_size
        if not self.allow_target_overlap:
            capacity, h, w = min((height // h * (width // w), h, w) for h, w in self.target_sizes)
            if capacity < self.num_targets:
                return (
                    f"num_targets={self.num_targets} blocks of {h} x {w} cannot be disjoint, "
                    f"only {height // h} * {width // w} = {capacity} always fit"
                )
        if self.need + self.room > self.largest_context:
            _, h, w = max((h * w, h, w) for h, w in self.target_sizes)
            term = (
                f"{self.room} (largest target block, {h} x {w})"
                if self.allow_target_overlap
                else f"{self.num_targets} * {self.largest_target} (disjoint target blocks, "
                f"up to {h} x {w})"
            )
            return (
                f"min_context_coverage={self.min_context_coverage:g} needs {self.need} context "
                f"tokens, and {self.need} + {term} = {self.need + self.room} exceeds "
                f"{self.largest_context} (largest context block)"
            )
        if isinstance(self.context_length, int) and self.context_length > self.need:
            return (
                f"context_length={self.context_length} exceeds the {self.need} tokens that "
                f"min_context_coverage={self.min_context_coverage:g} promises, so it could not "
                "always be met"
            )
        return None

    def changes(self) -> list[str]:
        """Single changes of an argument, each enough, written as the argument."""
        scale = self._largest_scale()
        most = self.largest_context - self.room
        need = most if self.need > most else self.context_length
        tried = [
            self._with_scale(scale) if scale > 0 else self,
            self._with_need(need) if isinstance(need, int) and 1 <= need <= self.size else self,
            replace(self, context_scale=(self.context_scale[0], 1.0)),
            replace(self, context_length=self.need),
        ]
        if not self.allow_target_overlap:
            counts = range(self.num_targets - 1, 0, -1)
            fewer = (replace(self, num_targets=count) for count in counts)
            tried.append(next((spec for spec in fewer if spec.problem() is None), self))
            tried.append(replace(self, allow_target_overlap=True))
        return [self._difference(spec) for spec in tried if spec.problem() is None]

    def _difference(self, other: "MultiBlockSpec") -> str:
        changed = (f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name))
        return ", ".join(f"{name}={getattr(other, name)!r}" for name in changed)

    def _largest_scale(self) -> int:
        """The largest high end of `target_scale` that would do, in steps; 0 if none would."""
        # No size shrinks when a scale grows, so the scales that will do are an interval.
        works, fails = 0, math.ceil(self.target_scale[1] / _STEP)
        while fails - works > 1:
            middle = (works + fails) // 2
            if self._with_scale(middle).problem() is None:
                works = middle
            else:
                fails = middle
        return works

    def _with_scale(self, steps: int) -> "MultiBlockSpec":
        high = round(steps * _STEP, 4)
        return replace(self, target_scale=(min(self.target_scale[0], high), high))

    def _with_need(self, need: int) -> "MultiBlockSpec":
        """With a coverage of exactly `need` tokens, in as few digits as tell it."""
        # Rounding down loses no token while the grid has fewer positions than the last digit tells.
        floors = (math.floor(need / self.size * 10**d) / 10**d for d in range(4, 17))
        coverage = next(c for c in floors if needed_tokens(c, self.size) == need)
        return replace(self, min_context_coverage=coverage)
