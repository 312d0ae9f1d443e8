"""Padding as exact zeros and as a key mask."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from jepakit.tokens import TokenSet


def key_mask(valid: Bool[Tensor, "b n"]) -> Bool[Tensor, "b 1 1 n"]:
    """Attention mask, True where a key takes part; every row has at least one key.

    Without any key the softmax would be NaN. A set with no valid entry therefore attends to all of
    its (zeroed) entries, and the caller drops the result.
    """
    empty = ~valid.any(dim=-1, keepdim=True)
    return (valid | empty)[:, None, None, :]


def additive_key_mask(valid: Bool[Tensor, "b n"], dtype: torch.dtype) -> Float[Tensor, "b 1 1 n"]:
    """The key mask as torch's attention adds it to the scores: 0 for a key, -inf for padding.

    Attention turns a bool mask into this one in every call. Built once, it serves all blocks; it
    must have the `dtype` of the queries.
    """
    mask = key_mask(valid)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -torch.inf)


def zero_padding(
    features: Float[Tensor, "b *m n d"], tokens: TokenSet | None
) -> Float[Tensor, "b *m n d"]:
    """Features with exact zeros at padding, NaN included; None stands for the whole grid."""
    if tokens is None or not tokens.padded:
        return features
    return features.masked_fill(~tokens.valid.unsqueeze(-1), 0)
