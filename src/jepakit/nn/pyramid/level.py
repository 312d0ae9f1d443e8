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
