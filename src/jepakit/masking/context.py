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
    # The numbers are multiples of 2^-24, and `topk` on integers takes half the time.
    keys = torch.where(mask, (uniforms * 2.0**24).int(), 2**24)
    chosen = keys.topk(length, dim=1, largest=False, sorted=False).indices
    kept = torch.zeros_like(mask).scatter_(1, chosen, True)
    return TokenSet._of_length(kept, length, grid_size)
