"""`NestedMask`: masks drawn on the coarsest level of a pyramid, so whole on every level."""

import math
from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Bool
from torch import Tensor

from jepakit._checks import as_grid_size, store_fields
from jepakit.masking.base import MaskTransform, UniformSampler, check_sampler
from jepakit.tokens import Masks, TokenSet
from jepakit.tokens._grid import coarsen_mask, level_grids, max_halvings

__all__ = ["NestedMask"]


@dataclass(frozen=True)
class NestedMask(MaskTransform):
    r"""The masks of a sampler on a pyramid's coarsest level, in patches of the finest.

    Level $l$ halves the grid $l$ times, upwards. `sampler` draws on the coarsest of $L$ levels,
    whose cells are $2^{L - 1}$ patches wide (less at the border), so every cell of every level lies
    either inside a block or outside it. One draw serves all levels: `masks.coarsen(level)` has
    whole cells, context and targets disjoint, and no empty target.

    A small coarsest grid has few places for a block, so targets of a sample repeat: with
    `MultiBlockMask`'s defaults about 27 % of them on 4x4 cells, 12 % on 7x7. Fewer levels or
    targets, or `allow_target_overlap=False` with smaller targets, avoid it.

    Args:
        grid_size: `(L,)`, `(H, W)` or `(T, H, W)` in patches, of the finest level.
        sampler: One of jepakit's samplers on the coarsest level's grid; its arguments count cells
            of that grid. An int `context_length` is a number of cells, and `"trim"` drops whole
            cells. Where the border cuts cells off, contexts of equally many cells differ in
            patches and are padded.

    Raises:
        TypeError: If `sampler` is not one of jepakit's, or is a `MultiContextMask`.

    Example:
        >>> from jepakit import MultiBlockMask
        >>> from jepakit.masking import NestedMask
        >>> sampler = NestedMask((14, 14), MultiBlockMask((4, 4)))
        >>> sampler.num_levels
        3
        >>> masks = sampler(2)
        >>> [masks.coarsen(level).grid_size for level in range(3)]
        [(14, 14), (7, 7), (4, 4)]
    """

    grid_size: tuple[int, ...]
    sampler: UniformSampler[Masks]

    def __post_init__(self) -> None:
        store_fields(self, grid_size=as_grid_size("grid_size", self.grid_size))
        check_sampler("sampler", self.sampler)
        if self.sampler.grid_size not in self._grids:
            raise ValueError(
                f"sampler on the grid {self.sampler.grid_size}: must be on the grid of a level of "
                f"{self.grid_size}, one of {', '.join(map(str, self._grids))}"
            )

    @cached_property
    def _grids(self) -> tuple[tuple[int, ...], ...]:
        """Grids of all possible levels, from the finest up."""
        return level_grids(self.grid_size, max_halvings(self.grid_size) + 1)

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
        """Smallest number of context patches, on the finest level, that a sample can have.

        It counts the smallest cells, since the border may cut cells off: on 14 x 14 one of the
        4 x 4 cells has 2 * 2 patches, six have 2 * 4 and nine have 4 * 4.
        """
        volumes = [1]
        for side in self.grid_size:
            widths = [min(self._cell, side - begin) for begin in range(0, side, self._cell)]
            volumes = [volume * width for volume in volumes for width in widths]
        return sum(sorted(volumes)[: self.sampler.min_context_tokens])

    def _transform(self, masks: Masks, valid: Bool[Tensor, "b N"] | None) -> Masks:
        targets_valid = None if valid is None else valid[:, None]
        return Masks(self._refine(masks.context, valid), self._refine(masks.targets, targets_valid))

    def _inner_valid(self, valid: Bool[Tensor, "b N"]) -> Bool[Tensor, "b M"]:
        """Cells with data."""
        return coarsen_mask(valid, self.grid_size, self._cell)[0]

    def _refine(self, coarse: TokenSet, valid: Bool[Tensor, "b ... N"] | None) -> TokenSet:
        """The patches of a set of cells, those with data."""
        batch = coarse.shape[:-1]
        mask = coarse.to_mask().view(math.prod(batch), *coarse.grid_size)
        for axis, side in enumerate(self.grid_size, start=1):
            mask = mask.repeat_interleave(self._cell, dim=axis).narrow(axis, 0, side)
        mask = mask.reshape(*batch, -1)
        whole = all(side % self._cell == 0 for side in self.grid_size)
        length = coarse.shape[-1] * self._cell ** len(self.grid_size)
        if valid is not None:
            mask = mask & valid
        elif whole and not coarse.padded:
            return TokenSet._of_length(mask, length, self.grid_size)
        elif getattr(self.sampler, "context_length", "pad") in ("pad", "trim"):
            return TokenSet.from_mask(mask, self.grid_size)
        # One shape for all batches: the set is as long as whole cells are.
        return TokenSet._up_to_length(mask, min(length, mask.shape[-1]), self.grid_size)
