"""Number of context tokens: the guaranteed minimum, and one length for the contexts of a batch."""

import math
from collections.abc import Collection
from numbers import Integral

import torch
from jaxtyping import Int
from torch import Tensor

from jepakit._checks import as_choice, as_int
from jepakit.masking._engine.random_numbers import sort_rows
from jepakit.tokens import TokenSet


def tokens_of_coverage(min_context_coverage: float, num_positions: int) -> int:
    """Tokens that a coverage amounts to, rounded up; at least 1.

    The slack keeps fractions such as 49 / 196 at exactly 49.
    """
    return max(1, math.ceil(min_context_coverage * num_positions - 1e-9))


def as_context_length(value: object, words: Collection[str]) -> str | int:
    """Return one of the words, or an integral number of at least 1 as an int; raise otherwise."""
    if isinstance(value, Integral) and not isinstance(value, bool):
        return as_int("context_length", value, minimum=1)
    if isinstance(value, str) and value in words:
        return as_choice("context_length", value, words)
    options = ", ".join(repr(word) for word in words)
    raise (ValueError if isinstance(value, str) else TypeError)(
        f"context_length={value!r}: must be {options} or an int of at least 1"
    )


def first_of_order(
    order: Int[Tensor, "b N"],
    length: int,
    grid_size: tuple[int, ...],
    counts: Int[Tensor, " b"] | None = None,
) -> TokenSet:
    """Sets of the first `length` positions of each order; of the first `counts` of them, if given.

    The length is known, so there is no host synchronisation.
    """
    first = order[:, :length]
    if counts is None:
        valid = torch.ones_like(first, dtype=torch.bool)
        return TokenSet._trusted(sort_rows(first).long(), valid, grid_size, padded=False)
    valid = torch.arange(length, device=order.device) < counts[:, None]
    # A number after all positions moves padding to the end, where it becomes 0.
    idx = sort_rows(torch.where(valid, first, math.prod(grid_size)))
    return TokenSet._trusted(idx.long() * valid, valid, grid_size, padded=True)


def squared_distances(grid_size: tuple[int, ...], centre: Int[Tensor, "b 1"]) -> Int[Tensor, "b N"]:
    """Squared distances, in patches, of all positions to one of each sample."""
    centre = centre.int()
    distances = torch.zeros_like(centre)
    for axis, side in enumerate(grid_size):
        coordinate = centre // math.prod(grid_size[axis + 1 :]) % side
        steps = torch.arange(side, dtype=torch.int32, device=centre.device) - coordinate
        distances = (distances[:, :, None] + steps[:, None] ** 2).flatten(1)
    return distances
