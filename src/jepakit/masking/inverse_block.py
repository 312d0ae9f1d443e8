"""`InverseBlockMask`: a block is kept and all the rest is hidden, as in data2vec 2.0."""

from dataclasses import KW_ONLY, dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from jepakit._checks import check_grid_size
from jepakit.masking.grow import (
    DRAWS_PER_BLOCK,
    check_blocks,
    exact_count,
    grow_blocks,
    num_rounds,
)
from jepakit.masking.base import UniformSampler
from jepakit.tokens import Masks, TokenSet

__all__ = ["InverseBlockMask"]


@dataclass(frozen=True)
class InverseBlockMask(UniformSampler[Masks]):
    r"""A block of context; all the rest is one target set, as in data2vec 2.0.

    Of $N = HW$ patches exactly $k = \mathrm{round}(r N)$ for $r$ = `context_ratio`, clipped to
    $[1, N - 1]$, are the context. A block grows around a random patch, as a rectangle clipped by
    the border, until it has its share of patches; if a block's share is less than the whole, more
    blocks follow.

    Args:
        grid_size: `(H, W)` in patches.
        context_ratio: Fraction of the patches that is visible.
        block_scale: Range of one block's share as a fraction of the grid, uniform; the last block
            adds what is still missing. At `context_ratio` or above it is a single block.
        block_aspect_ratio: Range of a block's height / width, log-uniform.

    Raises:
        InfeasibleMaskError: If the grid has a single patch.
        ValueError: If an argument is out of its range, or `block_scale` is a range of which every
            value gives a single block.

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
        check_grid_size("grid_size", self.grid_size, ndims=(2,))
        check_blocks(
            self.block_scale,
            self.block_aspect_ratio,
            count=exact_count("context_ratio", self.context_ratio, self.grid_size),
            grid_size=self.grid_size,
            default=InverseBlockMask.block_scale,
        )

    @cached_property
    def min_context_tokens(self) -> int:
        """Context tokens of every sample."""
        return exact_count("context_ratio", self.context_ratio, self.grid_size)

    @cached_property
    def num_uniforms(self) -> int:
        """Random numbers that one sample takes."""
        return DRAWS_PER_BLOCK * num_rounds(
            self.grid_size, self.min_context_tokens, self.block_scale
        )

    @property
    def per_sample(self) -> bool:
        """Whether a sample's masks depend on its own random numbers alone."""
        return True

    def _draw(self, uniforms: Float[Tensor, "b k"], device: torch.device | str | None) -> Masks:
        grid_size, count = self.grid_size, self.min_context_tokens
        visible = grow_blocks(
            grid_size, count, self.block_scale, self.block_aspect_ratio, uniforms, device
        )
        rest = visible.shape[1] - count
        return Masks(
            TokenSet._of_length(visible, count, grid_size),
            TokenSet._of_length(~visible[:, None], rest, grid_size),
        )
