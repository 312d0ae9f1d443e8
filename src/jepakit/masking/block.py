"""`BlockMask`: blocks that grow until a fraction of the grid is hidden, as in BEiT."""

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

__all__ = ["BlockMask"]


@dataclass(frozen=True)
class BlockMask(UniformSampler[Masks]):
    r"""One target set of a few large blocks; the rest is context, as in BEiT.

    Of $N = HW$ patches exactly $k = \mathrm{round}(r N)$ for $r$ = `target_ratio`, clipped to
    $[1, N - 1]$, are the target, so every context has $N - k$ tokens and nothing is ever padded.
    Blocks are added one after another. Each grows around a random patch, as a rectangle clipped by
    the border, until it has added its share of patches that no earlier block has.

    Args:
        grid_size: `(H, W)` in patches.
        target_ratio: Fraction of the patches to predict.
        block_scale: Range of one block's share as a fraction of the grid, uniform; the last block
            adds what is still missing. At `target_ratio` or above it is a single block.
        block_aspect_ratio: Range of a block's height / width, log-uniform.

    Raises:
        InfeasibleMaskError: If the grid has a single patch.
        ValueError: If an argument is out of its range, or `block_scale` is a range of which every
            value gives a single block.

    Example:
        >>> from jepakit.masking import BlockMask
        >>> masks = BlockMask((14, 14), target_ratio=0.4)(2)
        >>> masks.context.shape, masks.targets.shape
        (torch.Size([2, 118]), torch.Size([2, 1, 78]))

    Source:
        Bao et al., BEiT (arXiv:2106.08254), algorithm 1. Differences: a block adds its share of new
        patches, where BEiT draws whole rectangles, retries those that do not fit and ends near the
        ratio; so the number is exact, and a block may have a ragged side.
    """

    grid_size: tuple[int, int]
    _: KW_ONLY
    target_ratio: float = 0.4
    block_scale: tuple[float, float] = (0.08, 0.4)
    block_aspect_ratio: tuple[float, float] = (0.3, 1 / 0.3)

    def __post_init__(self) -> None:
        check_grid_size("grid_size", self.grid_size, ndims=(2,))
        check_blocks(
            self.block_scale,
            self.block_aspect_ratio,
            count=exact_count("target_ratio", self.target_ratio, self.grid_size),
            grid_size=self.grid_size,
            default=BlockMask.block_scale,
        )

    @cached_property
    def num_target_tokens(self) -> int:
        """Patches in the target set of every sample."""
        return exact_count("target_ratio", self.target_ratio, self.grid_size)

    @property
    def min_context_tokens(self) -> int:
        """Context tokens of every sample."""
        height, width = self.grid_size
        return height * width - self.num_target_tokens

    @cached_property
    def num_uniforms(self) -> int:
        """Random numbers that one sample takes."""
        rounds = num_rounds(self.grid_size, self.num_target_tokens, self.block_scale)
        return DRAWS_PER_BLOCK * rounds

    @property
    def per_sample(self) -> bool:
        """Whether a sample's masks depend on its own random numbers alone."""
        return True

    def _draw(self, uniforms: Float[Tensor, "b k"], device: torch.device | str | None) -> Masks:
        grid_size, count = self.grid_size, self.num_target_tokens
        hidden = grow_blocks(
            grid_size, count, self.block_scale, self.block_aspect_ratio, uniforms, device
        )
        rest = hidden.shape[1] - count
        return Masks(
            TokenSet._of_length(~hidden, rest, grid_size),
            TokenSet._of_length(hidden[:, None], count, grid_size),
        )
