"""The context of a mask: how many tokens it must have, and how a batch of them gets one length."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from jepakit._checks import check_choice, check_int
from jepakit.tokens import TokenSet

__all__: list[str] = []


def needed_tokens(min_context_coverage: float, num_positions: int) -> int:
    """Tokens that a coverage amounts to, at least 1; exact for fractions such as 49 / 196."""
    return max(1, math.ceil(min_context_coverage * num_positions - 1e-9))


def check_context_length(value: object) -> None:
    """Raise unless `value` is "pad", "trim" or an int of at least 1."""
    if isinstance(value, str):
        check_choice("context_length", value, ("pad", "trim"))
    else:
        check_int("context_length", value, minimum=1)


def fit_context(
    mask: Bool[Tensor, "b N"],
    grid_size: tuple[int, ...],
    context_length: str | int,
    uniforms: Float[Tensor, "b u"],
) -> TokenSet:
    """Pad contexts to the longest, or trim each by a random subset to the shortest or to an int.

    Every mask must have at least an int `context_length` of members; it is not read back.
    `uniforms` holds one number for each position, none with "pad".
    """
    if context_length == "pad":
        return TokenSet.from_mask(mask, grid_size)
    length = int(mask.sum(dim=1).min()) if isinstance(context_length, str) else context_length
    # Integers of 30 bits, on which `topk` takes half the time: random ones, then the position, so
    # that no two are equal and every device chooses the same. One tie in millions goes by position.
    size = mask.shape[1]
    random_bits = min(24, 30 - (size - 1).bit_length())
    keys = (uniforms * 2.0**random_bits).int() * size
    keys = keys + torch.arange(size, dtype=torch.int32, device=mask.device)
    chosen = keys.masked_fill(~mask, 2**30).topk(length, dim=1, largest=False, sorted=False)
    kept = torch.zeros_like(mask).scatter_(1, chosen.indices, True)
    return TokenSet._of_length(kept, length, grid_size)
