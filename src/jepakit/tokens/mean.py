"""`mean_tokens`: one vector for each set."""

import torch
from jaxtyping import Float
from torch import Tensor

from jepakit._checks import check_floating
from jepakit.tokens.kind import check_entries, check_same_device, check_token_set
from jepakit.tokens.token_set import TokenSet

__all__ = ["mean_tokens"]


def mean_tokens(features: Float[Tensor, "b *m n d"], tokens: TokenSet) -> Float[Tensor, "b *m d"]:
    r"""Mean over the valid tokens of each set.

    $$y = \frac{\sum_k \mathrm{valid}_k\, x_k}{\max(1, \sum_k \mathrm{valid}_k)}$$

    Args:
        features: One feature for every entry of `tokens`; not-valid ones are not read.
        tokens: Which entries count. A set without a valid one has the mean 0, without gradient.

    Raises:
        TypeError: If `features` is not floating point or `tokens` not a `TokenSet`.
        ValueError: If `features` does not have the shape of `tokens`, or is on another device.

    Example:
        >>> import torch
        >>> from jepakit import TokenSet, mean_tokens
        >>> tokens = TokenSet.from_mask(torch.tensor([[True, True], [True, False]]), (1, 2))
        >>> mean_tokens(torch.tensor([[[1.0], [3.0]], [[1.0], [0.0]]]), tokens).squeeze(-1)
        tensor([2., 1.])

    Source:
        jepakit's own. `features.mean(dim=1)` divides by the longest set of the batch, so that a
        vector's length says how full its set was.
    """
    check_token_set("tokens", tokens, like="masks.context")
    check_floating("features", features)
    check_entries(features, tokens)
    check_same_device("tokens", tokens, "features", features)
    seen = torch.where(tokens.valid.unsqueeze(-1), features, 0) if tokens.padded else features
    # In float32 at least, as `mean` does it: a sum in float16 overflows.
    total = seen.sum(dim=-2, dtype=torch.promote_types(features.dtype, torch.float32))
    return (total / tokens.counts().clamp(min=1).unsqueeze(-1)).to(features.dtype)
