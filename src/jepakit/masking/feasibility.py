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

    grid_size: tuple[int, ...]
    num_targets: int
    target_scale: tuple[float, float]
    target_aspect_ratio: tuple[float, float]
    temporal_scale: tuple[float, float]
    context_scale: tuple[float, float]
    max_temporal_keep: float
    min_context_coverage: float
    allow_target_overlap: bool
    context_length: str | int

    @cached_property
    def size(self) -> int:
        """Positions on the grid."""
        return math.prod(self.grid_size)

    @cached_property
    def min_context_tokens(self) -> int:
        """Context tokens that every sample has at least."""
        return needed_tokens(self.min_context_coverage, self.size)

    @cached_property
    def context_frames(self) -> int:
        """Frames, from the first, that a context may lie in; 1 without time."""
        if len(self.grid_size) < 3:
            return 1
        return max(1, math.floor(self.max_temporal_keep * self.grid_size[0] + 1e-9))

    @cached_property
    def target_sizes(self) -> list[tuple[int, ...]]:
        """Every size that a target can have."""
        return reachable_sizes(
            self.grid_size, self.target_scale, self.target_aspect_ratio, self.temporal_scale
        )

    @cached_property
    def largest_plane(self) -> int:
        """Cells of the largest target block in one frame."""
        return max(math.prod(size[-2:]) for size in self.target_sizes)

    @cached_property
    def dearest_target(self) -> tuple[int, tuple[int, ...]]:
        """Most cells that a target can take from a context, and the size that can."""
        return max((self._cost(size), size) for size in self.target_sizes)

    def _cost(self, size: tuple[int, ...]) -> int:
        *time, _, _ = (1, 1, *size)[-3:] if len(size) < 3 else size
        return math.prod(size) // time[0] * min(time[0], self.context_frames)

    @cached_property
    def room(self) -> int:
        """Cells that a context block must have beyond `min_context_tokens`."""
        return self.dearest_target[0] * (1 if self.allow_target_overlap else self.num_targets)

    @cached_property
    def largest_context(self) -> int:
        """Cells of the largest context block."""
        return self._context_sizes(smallest=0).largest

    @cached_property
    def context_sizes(self) -> ScaledSizes:
        """Sizes of context blocks that leave `min_context_tokens` whatever the targets are."""
        return self._context_sizes(smallest=self.min_context_tokens + self.room)

    def _context_sizes(self, *, smallest: int) -> ScaledSizes:
        return ScaledSizes.from_range(
            self.grid_size, self.context_scale, frames=self.context_frames, smallest=smallest
        )

    @cached_property
    def packing(self) -> tuple[int, ...]:
        """Most blocks along each axis; () where free placement cannot dead-end."""
        if self.allow_target_overlap or all(
            # A placed block bars at most 2 s - 1 places along a side of s.
            (self.num_targets - 1) * math.prod(2 * s - 1 for s in size)
            < math.prod(side - s + 1 for side, s in zip(self.grid_size, size, strict=True))
            for size in self.target_sizes
        ):
            return ()
        smallest = [min(sides) for sides in zip(*self.target_sizes, strict=True)]
        return tuple(side // s for side, s in zip(self.grid_size, smallest, strict=True))

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
        if not self.allow_target_overlap:
            capacity, size = min((self._capacity(size), size) for size in self.target_sizes)
            if capacity < self.num_targets:
                along = (side // s for side, s in zip(self.grid_size, size, strict=True))
                return (
                    f"num_targets={self.num_targets} blocks of {_product(size)} cannot be "
                    f"disjoint, only {' * '.join(map(str, along))} = {capacity} always fit"
                )
        if self.min_context_tokens + self.room > self.largest_context:
            cost, size = self.dearest_target
            kept = f", {self.context_frames} frames of it" if cost < math.prod(size) else ""
            term = (
                f"{self.room} (largest target block, {_product(size)}{kept})"
                if self.allow_target_overlap
                else f"{self.num_targets} * {cost} (disjoint target blocks, "
                f"up to {_product(size)}{kept})"
            )
            return (
                f"min_context_coverage={self.min_context_coverage:g} needs {self.min_context_tokens} context "
                f"tokens, and {self.min_context_tokens} + {term} = {self.min_context_tokens + self.room} exceeds "
                f"{self.largest_context} (largest context block)"
            )
        if isinstance(self.context_length, int) and self.context_length > self.min_context_tokens:
            return (
                f"context_length={self.context_length} exceeds the {self.min_context_tokens} tokens that "
                f"min_context_coverage={self.min_context_coverage:g} promises, so it could not "
                "always be met"
            )
        return None

    def _capacity(self, size: tuple[int, ...]) -> int:
        """How many disjoint blocks of a size always fit."""
        return math.prod(side // s for side, s in zip(self.grid_size, size, strict=True))

    def changes(self) -> list[str]:
        """Single changes of an argument, each enough, written as the argument."""
        scale = self._largest_scale()
        most = self.largest_context - self.room
        length = most if self.min_context_tokens > most else self.context_length
        tried = [
            self._with_scale(scale) if scale > 0 else self,
            self._with_min_context(length)
            if isinstance(length, int) and 1 <= length <= self.size
            else self,
            replace(self, context_scale=(self.context_scale[0], 1.0)),
            replace(self, max_temporal_keep=1.0),
            replace(self, context_length=self.min_context_tokens),
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

    def _with_min_context(self, count: int) -> "MultiBlockSpec":
        """With a coverage of exactly `count` tokens, in as few digits as tell it."""
        # Rounding down loses no token while the grid has fewer positions than the last digit tells.
        floors = (math.floor(count / self.size * 10**d) / 10**d for d in range(4, 17))
        coverage = next(c for c in floors if needed_tokens(c, self.size) == count)
        return replace(self, min_context_coverage=coverage)


def _product(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))
