"""`NestedMultiBlockMask`: one draw whose blocks are whole on every level of a pyramid."""

import math
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from jepakit._checks import check_grid_size
from jepakit.masking.feasibility import InfeasibleMaskError
from jepakit.masking.multiblock import MultiBlockMask
from jepakit.masking.sampler import UniformSampler
from jepakit.tokens import Masks, TokenSet
from jepakit.tokens.levels import level_grids

__all__ = ["NestedMultiBlockMask"]


@dataclass(frozen=True)
class NestedMultiBlockMask(UniformSampler[Masks]):
    r"""`MultiBlockMask` on the coarsest level of a pyramid, in patches of the finest.

    Level $l$ halves the grid $l$ times, upwards. Blocks are drawn on the coarsest level, whose
    cells are $2^{L - 1}$ patches wide (cut off by the border), so a cell of any level lies inside a
    block or outside it, never across. On every level context and targets are whole, disjoint and
    not empty, and `masks.coarsen(level)` gives them: one draw serves all levels.

    A small coarsest grid has few places for a block, so targets of a sample repeat: with the
    defaults about 27 % of them equal another one on 14x14 and 16x16 (4x4 cells on the coarsest
    level), 12 % on 28x28. Fewer levels or targets, or `allow_target_overlap=False` with smaller
    ones, avoid it.

    Args:
        grid_size: `(L,)`, `(H, W)` or `(T, H, W)` in patches, of the finest level.
        num_levels: Levels of the pyramid, the finest included; 1 is `MultiBlockMask`.
        num_targets: Target blocks for each sample.
        target_scale: Range of a target's area as a fraction of the coarsest grid, uniform.
        target_aspect_ratio: Range of a target's height / width.
        context_scale: Range of the context block's area, as a fraction of the coarsest grid.
        min_context_coverage: Fraction of the coarsest grid's cells that the context has at least.
        allow_target_overlap: Whether targets of one sample may share cells.
        block_size: As in `MultiBlockMask`.
        context_length: As in `MultiBlockMask`; an int counts cells of the coarsest level, and
            `"trim"` drops whole ones. Where the border cuts cells off, contexts of equally many
            cells still differ in patches and are padded.

    Raises:
        InfeasibleMaskError: As `MultiBlockMask` on the coarsest grid.
        ValueError: If the grid is a single cell before the last level.

    Example:
        >>> from jepakit.masking import NestedMultiBlockMask
        >>> masks = NestedMultiBlockMask((14, 14), num_levels=3)(2)
        >>> [masks.coarsen(level).context.grid_size for level in range(3)]
        [(14, 14), (7, 7), (4, 4)]
        >>> coarse = masks.coarsen(2)
        >>> bool((coarse.context.to_mask() & coarse.targets.to_mask().any(1)).any())
        False

    Source:
        jepakit's own. Samplers elsewhere draw every level independently while claiming to nest.
    """

    grid_size: tuple[int, ...]
    _: KW_ONLY
    num_levels: int = 3
    num_targets: int = 4
    target_scale: tuple[float, float] = (0.15, 0.2)
    target_aspect_ratio: tuple[float, float] = (0.75, 1.5)
    context_scale: tuple[float, float] = (0.85, 1.0)
    min_context_coverage: float = 0.25
    allow_target_overlap: bool = True
    block_size: Literal["batch", "sample"] = "batch"
    context_length: Literal["pad", "trim"] | int = "pad"

    def __post_init__(self) -> None:
        check_grid_size("grid_size", self.grid_size)
        level_grids(self.grid_size, self.num_levels)  # raises where there are not that many
        try:
            self.coarsest  # noqa: B018  (raises what is infeasible)
        except InfeasibleMaskError as error:
            raise InfeasibleMaskError(
                f"NestedMultiBlockMask on the grid {self.grid_size} with num_levels="
                f"{self.num_levels} draws on its coarsest level. {error}"
            ) from None

    @cached_property
    def coarsest(self) -> MultiBlockMask:
        """The sampler of the coarsest level."""
        return MultiBlockMask(
            level_grids(self.grid_size, self.num_levels)[-1],
            num_targets=self.num_targets,
            target_scale=self.target_scale,
            target_aspect_ratio=self.target_aspect_ratio,
            context_scale=self.context_scale,
            min_context_coverage=self.min_context_coverage,
            allow_target_overlap=self.allow_target_overlap,
            block_size=self.block_size,
            context_length=self.context_length,
        )

    @property
    def _cell(self) -> int:
        return 1 << (self.num_levels - 1)

    @cached_property
    def need(self) -> int:
        """Context patches of the finest level that every sample has at least.

        As many as the smallest cells have: those at the border may be cut off.
        """
        volumes = [1]
        for side in self.grid_size:
            widths = [min(self._cell, side - begin) for begin in range(0, side, self._cell)]
            volumes = [volume * width for volume in volumes for width in widths]
        return sum(sorted(volumes)[: self.coarsest.need])

    @property
    def num_draws(self) -> int:
        """Random numbers that one sample takes."""
        return self.coarsest.num_draws

    @property
    def per_sample(self) -> bool:
        """Whether a sample's masks depend on its own random numbers alone."""
        return self.coarsest.per_sample

    def _draw(self, uniforms: Float[Tensor, "b k"], device: torch.device | str | None) -> Masks:
        masks = self.coarsest.from_uniforms(uniforms, device=device)
        return Masks(self._refine(masks.context), self._refine(masks.targets))

    def _refine(self, coarse: TokenSet) -> TokenSet:
        batch = coarse.shape[:-1]
        mask = coarse.to_mask().view(math.prod(batch), *coarse.grid_size)
        for axis, side in enumerate(self.grid_size, start=1):
            mask = mask.repeat_interleave(self._cell, dim=axis).narrow(axis, 0, side)
        mask = mask.reshape(*batch, -1)
        whole = all(side % self._cell == 0 for side in self.grid_size)
        length = coarse.shape[-1] * self._cell ** len(self.grid_size)
        if whole and not coarse.padded:
            return TokenSet._of_length(mask, length, self.grid_size)
        if isinstance(self.context_length, str):
            return TokenSet.from_mask(mask, self.grid_size)
        return TokenSet._within(mask, min(length, mask.shape[-1]), self.grid_size)
