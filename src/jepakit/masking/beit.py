"""`BlockMask` and `InverseBlockMask`: sets of an exact size that grow in blocks, as in BEiT."""

from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from jepakit._checks import as_fraction, as_grid_size, as_range, store_fields
from jepakit.masking._engine.growth import UNIFORMS_PER_BLOCK, grow_blocks, max_num_blocks
from jepakit.masking.base import (
    UniformSampler,
    check_two_valid,
    positions_of_ratio,
    positions_of_ratio_in,
)
from jepakit.tokens import Masks, TokenSet

__all__ = ["BlockMask", "InverseBlockMask"]


class _GrownBlocks(UniformSampler[Masks]):
    """One set grows in blocks, and its complement is the other set."""

    grid_size: tuple[int, int]
    block_scale: tuple[float, float]
    block_aspect_ratio: tuple[float, float]

    @property
    @abstractmethod
    def _grown_ratio(self) -> float:
        """Fraction of the patches in the set that grows."""

    @cached_property
    def _num_grown(self) -> int:
        return positions_of_ratio(self._grown_ratio, self.grid_size)

    @property
    def _num_left(self) -> int:
        height, width = self.grid_size
        return height * width - self._num_grown

    @property
    def _columns(self) -> list[int]:
        blocks = max_num_blocks(self.grid_size, self._num_grown, self.block_scale)
        return [UNIFORMS_PER_BLOCK] * blocks

    def _store(self, ratio_name: str) -> None:
        """Normalise the fields; the ratio is the one that the growing set has of the grid."""
        ratio = getattr(self, ratio_name)
        store_fields(
            self,
            grid_size=as_grid_size("grid_size", self.grid_size, num_axes=(2,)),
            block_scale=as_range("block_scale", self.block_scale, high=1.0),
            block_aspect_ratio=as_range("block_aspect_ratio", self.block_aspect_ratio),
            **{ratio_name: as_fraction(ratio_name, ratio, open_low=True, open_high=True)},
        )
        low, high = self.block_scale
        single_block = self.num_uniforms == UNIFORMS_PER_BLOCK
        # The default range may be without effect, since the user did not choose it.
        if single_block and low < high and self.block_scale != type(self).block_scale:
            raise ValueError(
                f"block_scale={self.block_scale}: has no effect, since the smallest block has all "
                f"of the {self._num_grown} patches already; must begin lower, or be (1.0, 1.0)"
            )

    def _grow(
        self, uniforms: Float[Tensor, "b k"], valid: Bool[Tensor, "b N"] | None
    ) -> tuple[TokenSet, TokenSet]:
        """The set that grows and its complement."""
        grid_size, count = self.grid_size, self._num_grown
        scales = self.block_scale, self.block_aspect_ratio
        if valid is None:
            counts = torch.tensor([count], device="cpu")
            grown = grow_blocks(grid_size, counts, *scales, uniforms)
            rest = TokenSet._of_length(~grown, self._num_left, grid_size)
            return TokenSet._of_length(grown, count, grid_size), rest
        counts = positions_of_ratio_in(self._grown_ratio, valid.sum(dim=1))
        grown = grow_blocks(grid_size, counts, *scales, uniforms, valid)
        rest = TokenSet._up_to_length(valid & ~grown, self._num_left, grid_size)
        return TokenSet._up_to_length(grown, count, grid_size), rest

    def _check_feasible_in(self, valid: Bool[Tensor, "b N"]) -> None:
        check_two_valid(valid)


@dataclass(frozen=True)
class BlockMask(_GrownBlocks):
    r"""One target set of a few large blocks; the rest is context, as in BEiT.

    Of $N = HW$ patches exactly $k = \mathrm{round}(r N)$ for $r$ = `target_ratio`, clipped to
    $[1, N - 1]$, are the target, so every context has $N - k$ tokens and nothing is padded.
    Blocks are added one after another. Each grows around a random patch, as a rectangle clipped by
    the border, until it has added a drawn number of patches that no earlier block has.

    Args:
        grid_size: `(H, W)` in patches.
        target_ratio: Fraction of the patches to predict, in (0, 1).
        block_scale: Range of the patches that one block adds, as a fraction of the grid, uniform;
            the last block adds what is still missing. At `target_ratio` or above it is a single
            block.
        block_aspect_ratio: Range of a block's height / width, log-uniform.

    Raises:
        InfeasibleMaskError: If the grid has a single patch.
        ValueError: If `block_scale` is a range of which every value gives a single block.

    Example:
        >>> from jepakit.masking import BlockMask
        >>> masks = BlockMask((14, 14), target_ratio=0.4)(2)
        >>> masks.context.shape, masks.targets.shape
        (torch.Size([2, 118]), torch.Size([2, 1, 78]))

    Source:
        Bao et al., BEiT (arXiv:2106.08254), algorithm 1. Differences: a block adds new patches up
        to its number, where BEiT draws whole rectangles, retries those that do not fit and ends
        near the ratio. So the number is exact, and a block may have a ragged side.
    """

    grid_size: tuple[int, int]
    _: KW_ONLY
    target_ratio: float = 0.4
    block_scale: tuple[float, float] = (0.08, 0.4)
    block_aspect_ratio: tuple[float, float] = (0.3, 1 / 0.3)

    def __post_init__(self) -> None:
        self._store("target_ratio")

    @property
    def num_target_tokens(self) -> int:
        """Patches in the target set of every sample."""
        return self._num_grown

    @property
    def _grown_ratio(self) -> float:
        return self.target_ratio

    @property
    def min_context_tokens(self) -> int:
        """Context tokens of every sample."""
        return self._num_left

    def _draw(self, uniforms: Float[Tensor, "b k"], valid: Bool[Tensor, "b N"] | None) -> Masks:
        targets, context = self._grow(uniforms, valid)
        return Masks(context, targets[:, None])


@dataclass(frozen=True)
class InverseBlockMask(_GrownBlocks):
    r"""A block of context; all the rest is one target set, as in data2vec 2.0.

    Of $N = HW$ patches exactly $k = \mathrm{round}(r N)$ for $r$ = `context_ratio`, clipped to
    $[1, N - 1]$, are the context. It grows as the target of `BlockMask` does.

    Args:
        grid_size: `(H, W)` in patches.
        context_ratio: Fraction of the patches that is visible, in (0, 1).
        block_scale, block_aspect_ratio: As in `BlockMask`.

    Raises:
        InfeasibleMaskError: If the grid has a single patch.

    Example:
        >>> from jepakit.masking import InverseBlockMask
        >>> masks = InverseBlockMask((14, 14), context_ratio=0.2)(2)
        >>> masks.context.shape, masks.targets.shape
        (torch.Size([2, 39]), torch.Size([2, 1, 157]))

    Source:
        Baevski et al., data2vec 2.0 (arXiv:2212.07525), section 3.3. Differences: one block by
        default, where the paper keeps blocks of 3 x 3 until the ratio is reached (there:
        `block_scale=(9 / N, 9 / N)` and `block_aspect_ratio=(1.0, 1.0)`); a block adds new patches
        only, so the number is exact without a correction by single patches.
    """

    grid_size: tuple[int, int]
    _: KW_ONLY
    context_ratio: float = 0.2
    block_scale: tuple[float, float] = (1.0, 1.0)
    block_aspect_ratio: tuple[float, float] = (0.75, 1.5)

    def __post_init__(self) -> None:
        self._store("context_ratio")

    @property
    def min_context_tokens(self) -> int:
        """Context tokens of every sample."""
        return self._num_grown

    @property
    def _grown_ratio(self) -> float:
        return self.context_ratio

    def _draw(self, uniforms: Float[Tensor, "b k"], valid: Bool[Tensor, "b N"] | None) -> Masks:
        context, targets = self._grow(uniforms, valid)
        return Masks(context, targets[:, None])
