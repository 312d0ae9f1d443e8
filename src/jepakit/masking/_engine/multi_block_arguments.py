"""Arguments of `MultiBlockMask`: their rules, the arithmetic of feasibility, and changes for it.

Masks exist for every draw if and only if `min_context_tokens + a <= A`, where `a` is the most cells
that targets can take from the context, and `A` is the size of the largest context block.

A worked example, the grid (4, 4) with `min_context_coverage=0.25`, `target_scale=(0.2, 0.25)`,
`target_aspect_ratio=(0.75, 1.5)` and `context_scale=(0.85, 1.0)`:

- min_context_tokens: ceil(0.25 * 16) = 4 tokens.
- a: areas are 3.2 to 4 cells. Sides are sqrt(area * aspect) and sqrt(area / aspect), so 1.55 to
  2.45 high and 1.46 to 2.31 wide: every target is 2 x 2 or 2 x 1, and the largest takes 4 cells.
- A: context blocks have sides of 4 * sqrt(scale), 3.69 to 4, so all are 4 x 4 = 16 cells.

4 + 4 <= 16, so the masks exist. Several targets that may overlap take no more than one: they can
all lie on the place of the first. Four disjoint ones can take 4 * 4 cells: 4 + 16 > 16, infeasible,
while with `num_targets=3` 4 + 12 <= 16.
"""

import math
from bisect import bisect_left
from dataclasses import KW_ONLY, dataclass, fields
from enum import Enum, auto
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from jepakit._checks import (
    as_bool,
    as_choice,
    as_fraction,
    as_grid_size,
    as_int,
    as_range,
    store_fields,
)
from jepakit.masking._engine.block_sizes import ContextBlockSizes, reachable_sizes
from jepakit.masking._engine.context_length import (
    as_context_length,
    nearest_order_exists,
    tokens_of_coverage,
)

# Scales are suggested to four digits.
_SCALE_STEP = 1e-4


class Obstacle(Enum):
    """A reason why masks do not exist for every draw."""

    TARGETS_NOT_DISJOINT = auto()
    CONTEXT_TOO_SMALL = auto()
    LENGTH_NOT_PROMISED = auto()


@dataclass(frozen=True)
class MultiBlockArguments:
    """The fields of `MultiBlockMask`, normalised, and what follows from them for feasibility.

    They exist for infeasible arguments too; the sampler refuses those.
    """

    grid_size: tuple[int, ...]
    _: KW_ONLY
    num_targets: int = 4
    target_scale: tuple[float, float] = (0.15, 0.2)
    target_aspect_ratio: tuple[float, float] = (0.75, 1.5)
    temporal_scale: tuple[float, float] = (1.0, 1.0)
    context_scale: tuple[float, float] = (0.85, 1.0)
    context_frames_ratio: float = 1.0
    min_context_coverage: float = 0.25
    allow_target_overlap: bool = True
    target_size_per: Literal["batch", "sample"] = "batch"
    context_length: Literal["fixed", "pad", "trim"] | int = "fixed"
    context_subset: Literal["nearest", "random"] = "nearest"

    def __post_init__(self) -> None:
        store_fields(
            self,
            grid_size=as_grid_size("grid_size", self.grid_size),
            num_targets=as_int("num_targets", self.num_targets, minimum=1),
            target_scale=as_range("target_scale", self.target_scale, high=1.0),
            target_aspect_ratio=as_range("target_aspect_ratio", self.target_aspect_ratio),
            temporal_scale=as_range("temporal_scale", self.temporal_scale, high=1.0),
            context_scale=as_range("context_scale", self.context_scale, high=1.0),
            context_frames_ratio=as_fraction(
                "context_frames_ratio", self.context_frames_ratio, open_low=True
            ),
            min_context_coverage=as_fraction("min_context_coverage", self.min_context_coverage),
            allow_target_overlap=as_bool("allow_target_overlap", self.allow_target_overlap),
            target_size_per=as_choice("target_size_per", self.target_size_per, ("batch", "sample")),
            context_length=as_context_length(self.context_length, ("fixed", "pad", "trim")),
            context_subset=as_choice("context_subset", self.context_subset, ("nearest", "random")),
        )
        without_effect = ["target_aspect_ratio"] if len(self.grid_size) == 1 else []
        if len(self.grid_size) < 3 or self.grid_size[0] == 1:
            without_effect += ["temporal_scale", "context_frames_ratio"]
        for name in without_effect:
            if getattr(self, name) != getattr(type(self), name):  # the default
                raise ValueError(
                    f"{name}={getattr(self, name)}: has no effect on the grid {self.grid_size}, so "
                    "must be left out"
                )
        if self.context_length == "pad" and self.context_subset != type(self).context_subset:
            raise ValueError(
                f"context_subset={self.context_subset!r}: has no effect with context_length='pad', "
                "so must be left out"
            )
        nearest = self.context_length != "pad" and self.context_subset == "nearest"
        if nearest and not nearest_order_exists(self.grid_size):
            raise ValueError(
                f"grid_size={self.grid_size}: must be smaller for context_subset='nearest'; "
                "'random' takes any"
            )

    @cached_property
    def _num_positions(self) -> int:
        return math.prod(self.grid_size)

    @cached_property
    def _promised_tokens(self) -> int:
        """Number of context tokens that `min_context_coverage` promises."""
        return tokens_of_coverage(self.min_context_coverage, self._num_positions)

    @cached_property
    def _context_frames(self) -> int:
        """Frames, from the first, that a context may lie in; 1 without time."""
        if len(self.grid_size) < 3:
            return 1
        return max(1, math.floor(self.context_frames_ratio * self.grid_size[0] + 1e-9))

    def _min_context_tokens_of(self, num_positions: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
        """Context tokens that `min_context_coverage` promises for samples of `num_positions`."""
        tokens = torch.ceil(self.min_context_coverage * num_positions.double() - 1e-9)
        return tokens.long().clamp_min(1)

    @cached_property
    def _blocks_last_all_frames(self) -> bool:
        """True on `(T, H, W)` where all blocks of context and targets have the full duration."""
        return len(self.grid_size) == 3 and all(
            size[0] == self._context_frames == self.grid_size[0] for size in self._target_sizes
        )

    def _context_frames_of(self, num_frames: Int[Tensor, "*b"]) -> Int[Tensor, "*b"]:
        """Frames, from the first, that the context of samples of `num_frames` may lie in."""
        frames = torch.floor(self.context_frames_ratio * num_frames.double() + 1e-9)
        return frames.long().clamp_min(1)

    @cached_property
    def _target_sizes(self) -> list[tuple[int, ...]]:
        return reachable_sizes(
            self.grid_size, self.target_scale, self.target_aspect_ratio, self.temporal_scale
        )

    @cached_property
    def _largest_rectangle(self) -> int:
        """Cells of the largest target in one frame."""
        return max(math.prod(size[-2:]) for size in self._target_sizes)

    @cached_property
    def _largest_target(self) -> int:
        """Cells of the largest target."""
        return max(map(math.prod, self._target_sizes))

    @cached_property
    def _costliest_target(self) -> tuple[int, tuple[int, ...]]:
        """Most cells that one target can take from a context, and its size."""
        return max((self._context_cells(size), size) for size in self._target_sizes)

    def _context_cells(self, size: tuple[int, ...]) -> int:
        """Cells that a target can take from a context: those in the context's frames."""
        if len(size) < 3:
            return math.prod(size)
        frames, height, width = size
        return min(frames, self._context_frames) * height * width

    @cached_property
    def _target_cells(self) -> int:
        """`a`: most cells that all targets together can take from a context.

        That of one target where they may overlap, since later ones fit the budget that it leaves.
        """
        cells, _ = self._costliest_target
        return cells if self.allow_target_overlap else cells * self.num_targets

    @cached_property
    def _largest_context(self) -> int:
        """`A`: cells of the largest context block."""
        return self._all_context_sizes(min_volume=0).largest_volume

    @cached_property
    def _context_sizes(self) -> ContextBlockSizes:
        """Sizes of context blocks that keep the promise whatever the targets are."""
        return self._all_context_sizes(min_volume=self._promised_tokens + self._target_cells)

    def _all_context_sizes(self, *, min_volume: int) -> ContextBlockSizes:
        return ContextBlockSizes.from_range(
            self.grid_size, self.context_scale, frames=self._context_frames, min_volume=min_volume
        )

    @cached_property
    def _packing(self) -> tuple[int, ...]:
        """Most disjoint blocks along each axis; () where free placement cannot run out of places.

        A placed block of side s bars at most 2 s - 1 places along an axis of side - s + 1. On
        14 x 14 with blocks of 3 x 3, one block bars 5 * 5 = 25 of 12 * 12 = 144 places, so 6 blocks
        can always be placed one after another: 5 * 25 < 144.
        """
        if self.allow_target_overlap or all(
            (self.num_targets - 1) * math.prod(2 * s - 1 for s in size)
            < math.prod(side - s + 1 for side, s in zip(self.grid_size, size, strict=True))
            for size in self._target_sizes
        ):
            return ()
        smallest = tuple(min(sides) for sides in zip(*self._target_sizes, strict=True))
        return self._blocks_along_axes(smallest)

    def _blocks_along_axes(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(side // s for side, s in zip(self.grid_size, size, strict=True))

    @cached_property
    def _fewest_disjoint(self) -> tuple[int, tuple[int, ...]]:
        """Disjoint blocks that fit in any case, and the size of which no more do."""
        return min((math.prod(self._blocks_along_axes(size)), size) for size in self._target_sizes)

    def _obstacle(self) -> Obstacle | None:
        """Return the reason why masks do not exist for every draw, or None if they do."""
        if not self.allow_target_overlap and self._fewest_disjoint[0] < self.num_targets:
            return Obstacle.TARGETS_NOT_DISJOINT
        if self._promised_tokens + self._target_cells > self._largest_context:
            return Obstacle.CONTEXT_TOO_SMALL
        if isinstance(self.context_length, int) and self.context_length > self._promised_tokens:
            return Obstacle.LENGTH_NOT_PROMISED
        return None

    def _explain(self, obstacle: Obstacle) -> str:
        """Describe the arithmetic of an obstacle, for an error message."""
        minimum = self._promised_tokens
        if obstacle is Obstacle.TARGETS_NOT_DISJOINT:
            fit, size = self._fewest_disjoint
            along_axes = " * ".join(map(str, self._blocks_along_axes(size)))
            return (
                f"num_targets={self.num_targets} blocks of {_product(size)} cannot be "
                f"disjoint, only {along_axes} = {fit} always fit"
            )
        if obstacle is Obstacle.LENGTH_NOT_PROMISED:
            return (
                f"context_length={self.context_length} exceeds the {minimum} tokens that "
                f"min_context_coverage={self.min_context_coverage:g} promises, so it could not "
                "always be met"
            )
        cells, size = self._costliest_target
        kept = f", {self._context_frames} frames of it" if cells < math.prod(size) else ""
        blocks = f"{_product(size)}{kept}"
        taken = f"{self.num_targets} * {cells} (disjoint target blocks, up to {blocks})"
        if self.allow_target_overlap:
            taken = f"{cells} (largest target block, {blocks})"
        return (
            f"min_context_coverage={self.min_context_coverage:g} needs {minimum} context tokens, "
            f"and {minimum} + {taken} = {minimum + self._target_cells} exceeds "
            f"{self._largest_context} (largest context block)"
        )

    def _advice(self) -> str:
        """List the changes of a single argument that make masks feasible, for an error message."""
        tried = [
            self._with_largest_scale(),
            self._with_promised_tokens(),
            self._with(context_scale=(self.context_scale[0], 1.0)),
            self._with(context_frames_ratio=1.0),
            self._with(context_length=self._promised_tokens),
        ]
        if not self.allow_target_overlap:
            fewer = [self._with(num_targets=n) for n in range(self.num_targets - 1, 0, -1)]
            tried.append(next((changed for changed in fewer if changed._obstacle() is None), self))
            tried.append(self._with(allow_target_overlap=True))
        changes = [self._difference(changed) for changed in tried if changed._obstacle() is None]
        if not changes:
            return "No single change is enough: lower target_scale and min_context_coverage"
        return "Change one of: " + "; ".join(changes)

    def _with(self, **changes: object) -> "MultiBlockArguments":
        """Return a copy with other values, which may be infeasible too."""
        copy = object.__new__(MultiBlockArguments)
        store_fields(copy, **{f.name: getattr(self, f.name) for f in fields(self)} | changes)
        return copy

    def _difference(self, other: "MultiBlockArguments") -> str:
        changed = (f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name))
        return ", ".join(f"{name}={getattr(other, name)!r}" for name in changed)

    def _with_largest_scale(self) -> "MultiBlockArguments":
        """Return a copy whose `target_scale` has the largest feasible upper bound; self if none."""

        def with_scale(steps: int) -> MultiBlockArguments:
            high = round(steps * _SCALE_STEP, 4)
            return self._with(target_scale=(min(self.target_scale[0], high), high))

        # No size shrinks when a scale grows, so the feasible scales are an interval.
        too_large = range(1, math.ceil(self.target_scale[1] / _SCALE_STEP))
        feasible = bisect_left(too_large, True, key=lambda k: with_scale(k)._obstacle() is not None)
        return with_scale(feasible) if feasible > 0 else self

    def _with_promised_tokens(self) -> "MultiBlockArguments":
        """Return a copy whose coverage promises as many tokens as possible, or an int length.

        The coverage has as few digits as give the exact number of tokens.
        """
        possible = self._largest_context - self._target_cells
        tokens = possible if self._promised_tokens > possible else self.context_length
        if not isinstance(tokens, int) or not 1 <= tokens <= self._num_positions:
            return self
        coverages = (math.floor(tokens / self._num_positions * 10**d) / 10**d for d in range(4, 17))
        exact = (c for c in coverages if tokens_of_coverage(c, self._num_positions) == tokens)
        return self._with(min_context_coverage=next(exact))


def _product(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))
