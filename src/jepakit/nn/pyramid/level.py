"""`Level`: one level of a pyramid, features and where they are."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from jepakit.tokens import TokenSet

__all__ = ["Level"]


class Level(NamedTuple):
    r"""One level of a pyramid: what its cells hold, and which cells it has.

    `features[b, k]` belongs to the cell `tokens.idx[b, k]` of the grid `tokens.grid_size`, and is
    zero where `tokens.valid[b, k]` is False.

    Args:
        features: A vector for every entry of `tokens`, `[b n d]`.
        tokens: The cells, `[b n]`, on the grid of the level.

    Example:
        >>> import torch
        >>> from jepakit import HierarchicalPyramid
        >>> levels = HierarchicalPyramid((4, 4), 8, num_levels=2)(torch.randn(1, 16, 8))
        >>> features, tokens = levels[1]
        >>> features.shape, tokens.grid_size
        (torch.Size([1, 4, 8]), (2, 2))

    Source:
        jepakit's own.
    """

    features: Float[Tensor, "b n d"]
    tokens: TokenSet

    def trimmed(self) -> "Level":
        """Without the entries that are padding in every sample; reads back which those are.

        A context of 32 patches may have 16 cells of a coarser level, and with blocks that are whole
        on every level it has 8: a predictor need not compute the rest. Not for `torch.compile`.

        Example:
            >>> import torch
            >>> from jepakit import HierarchicalPyramid, MultiBlockMask
            >>> from jepakit.masking import NestedMask
            >>> sampler = NestedMask((8, 8), MultiBlockMask((4, 4), context_length="trim"))
            >>> context = sampler(2, generator=torch.Generator().manual_seed(0)).context
            >>> pyramid = HierarchicalPyramid((8, 8), 4, num_levels=2)
            >>> coarse = pyramid(torch.randn(*context.shape, 4), context)[1]
            >>> [tuple(level.tokens.shape) for level in (coarse, coarse.trimmed())]
            [(2, 16), (2, 8)]
        """
        kept = self.tokens.valid.any(dim=0)
        idx, valid = self.tokens.idx[:, kept], self.tokens.valid[:, kept]
        padded = not bool(valid.all())
        tokens = TokenSet._trusted(idx, valid, self.tokens.grid_size, padded=padded)
        return Level(self.features[:, kept], tokens)
