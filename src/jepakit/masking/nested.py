"""`NestedMask`: masks of a coarse grid, whole on every level of a pyramid."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from jepakit._checks import as_grid_size, store_fields
from jepakit.masking.mixture import check_member
from jepakit.masking.base import UniformSampler
from jepakit.tokens import Masks, TokenSet
from jepakit.tokens._grid import level_grids, num_halvings

__all__ = ["NestedMask"]


@dataclass(frozen=True)
class NestedMask(UniformSampler[Masks]):
    r"""The masks of a sampler on a pyramid's coarsest level, in patches of the finest.

    Level $l$ halves the grid $l$ times, upwards. `sampler` draws on the coarsest level, whose
    cells are $2^{L - 1}$ patches wide (cut off by the border), so a cell of any level lies inside a
    block or outside it, never across. On every level context and targets are whole, disjoint and
    not empty, and `masks.coarsen(level)` gives them: one draw serves all levels.

    A small coarsest grid has few places for a block, so targets of a sample repeat: with
    `MultiBlockMask`'s defaults about 27 % of them equal another one on 14x14 and 16x16 with three
    levels (4x4 cells on the coarsest), 12 % on 28x28. Fewer levels or targets, or
    `allow_target_overlap=False` with smaller ones, avoid it.

    Args:
        grid_size: `(L,)`, `(H, W)` or `(T, H, W)` in patches, of the finest level.
        sampler: One of jepakit's samplers on the coarsest level's grid; its arguments count cells
            of that grid. An int `context_length` is a number of cells, and `"trim"` drops whole
            ones. Where the border cuts cells off, contexts of equally many cells still differ in
            patches and are padded.

    Raises:
        TypeError: If `sampler` is not one of jepakit's, or gives several contexts.
        ValueError: If its grid is not that of a level.

    Example:
        >>> from jepakit import MultiBlockMask
        >>> from jepakit.masking import NestedMask
        >>> sampler = NestedMask((14, 14), MultiBlockMask((4, 4)))
        >>> sampler.num_levels
        3
        >>> masks = sampler(2)
        >>> [masks.coarsen(level).grid_size for level in range(3)]
        [(14, 14), (7, 7), (4, 4)]
        >>> coarse = masks.coarsen(2)
        >>> bool((coarse.context.to_mask() & coarse.targets.to_mask().any(1)).any())
        False
    """

    grid_size: tuple[int, ...]
    sampler: UniformSampler[Masks]

    def __post_init__(self) -> None:
        store_fields(self, grid_size=as_grid_size("grid_size", self.grid_size))
        check_member("sampler", self.sampler)
        if self.sampler.grid_size not in self._grids:
            raise ValueError(
                f"sampler on the grid {self.sampler.grid_size}: must be on the grid of a level of "
                f"{self.grid_size}, one of {', '.join(map(str, self._grids))}"
            )

    @cached_property
    def _grids(self) -> tuple[tuple[int, ...], ...]:
        """Grids of all levels that there can be, from the finest up."""
        return level_grids(self.grid_size, num_halvings(self.grid_size) + 1)

    @cached_property
    def num_levels(self) -> int:
        """Levels of the pyramid, the finest included; 1 where `sampler` is on the finest grid."""
        return self._grids.index(self.sampler.grid_size) + 1

    @property
    def _cell(self) -> int:
        """Patches along one side of a cell of the coarsest level."""
        return 1 << (self.num_levels - 1)

    @cached_property
    def min_context_tokens(self) -> int:
        """Context patches of the finest level that every sample has at least.

        The patches of the smallest cells: those at the border may be cut off.
        """
        volumes = [1]
        for side in self.grid_size:
            widths = [min(self._cell, side - begin) for begin in range(0, side, self._cell)]
            volumes = [volume * width for volume in volumes for width in widths]
        return sum(sorted(volumes)[: self.sampler.min_context_tokens])

    @property
    def num_uniforms(self) -> int:
        """Random numbers that one sample takes."""
        return self.sampler.num_uniforms

    @property
    def per_sample(self) -> bool:
        """Whether a sample's masks depend on its own random numbers alone."""
        return self.sampler.per_sample

    def _draw(self, uniforms: Float[Tensor, "b k"], device: torch.device | str | None) -> Masks:
        return self._refine_masks(self.sampler.from_uniforms(uniforms, device=device))

    def _untrimmed(self, uniforms: Float[Tensor, "b k"]) -> Masks:
        return self._refine_masks(self.sampler._untrimmed(uniforms))

    def _refine_masks(self, masks: Masks) -> Masks:
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
        if isinstance(getattr(self.sampler, "context_length", "pad"), str):
            return TokenSet.from_mask(mask, self.grid_size)
        # With an int length nothing is synchronised, so the set has the length of whole cells.
        return TokenSet._up_to_length(mask, min(length, mask.shape[-1]), self.grid_size)
