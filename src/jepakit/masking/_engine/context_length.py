"""Number of context tokens: the guaranteed minimum, and one length for the contexts of a batch."""

import math
from collections.abc import Collection
from numbers import Integral

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from jepakit._checks import as_choice, as_int
from jepakit.tokens import TokenSet


def tokens_of_coverage(min_context_coverage: float, num_positions: int) -> int:
    """Tokens that a coverage amounts to, rounded up; at least 1.

    The slack keeps fractions such as 49 / 196 at exactly 49.
    """
    return max(1, math.ceil(min_context_coverage * num_positions - 1e-9))


def as_context_length(value: object, words: Collection[str] = ("pad", "trim")) -> str | int:
    """Return one of the words, or an integral number of at least 1 as an int; raise otherwise."""
    if isinstance(value, Integral) and not isinstance(value, bool):
        return as_int("context_length", value, minimum=1)
    if isinstance(value, str) and value in words:
        return as_choice("context_length", value, words)
    options = ", ".join(repr(word) for word in words)
    raise (ValueError if isinstance(value, str) else TypeError)(
        f"context_length={value!r}: must be {options} or an int of at least 1"
    )


def fit_context(
    mask: Bool[Tensor, "b N"],
    grid_size: tuple[int, ...],
    context_length: str | int,
    uniforms: Float[Tensor, "b u"],
) -> TokenSet:
    """Pad contexts to the longest, or trim each by a random subset to the shortest or to an int.

    Every mask must have at least an int `context_length` of members; that is not checked, so an int
    needs no host synchronisation. `uniforms` has one number for each position, none with "pad".
    """
    if context_length == "pad":
        return TokenSet.from_mask(mask, grid_size)
    length = int(mask.sum(dim=1).min()) if isinstance(context_length, str) else context_length
    # The members with the smallest keys stay. A key is an int of 30 bits, on which `topk` takes
    # half the time: random bits first, the position in the last ones. So no two keys are equal and
    # every device keeps the same members; on 14 x 14, position p with the number u has the key
    # floor(u * 2^22) * 196 + p. One pair in millions has equal random bits and goes by position.
    size = mask.shape[1]
    random_bits = min(24, 30 - (size - 1).bit_length())
    keys = (uniforms * 2.0**random_bits).int() * size
    keys = keys + torch.arange(size, dtype=torch.int32, device=mask.device)
    chosen = keys.masked_fill(~mask, 2**30).topk(length, dim=1, largest=False, sorted=False)
    kept = torch.zeros_like(mask).scatter_(1, chosen.indices, True)
    return TokenSet._of_length(kept, length, grid_size)
