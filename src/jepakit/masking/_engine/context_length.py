"""Number of context tokens: the guaranteed minimum, and one length for the contexts of a batch."""

import math
from collections.abc import Collection
from functools import lru_cache
from numbers import Integral

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jepakit._checks import as_choice, as_int
from jepakit.masking._engine.random_numbers import sort_rows
from jepakit.tokens import TokenSet

# Keys of so many bits are exact in float64, and so are the sums of products behind them.
_EXACT_BITS = 50


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


def nearest_order_exists(grid_size: tuple[int, ...]) -> bool:
    """True if the keys of `nearest_order` are exact: on one axis up to some 90,000 positions."""
    return _position_bits(grid_size) + _distance_bits(grid_size) <= _EXACT_BITS


def _position_bits(grid_size: tuple[int, ...]) -> int:
    return (math.prod(grid_size) - 1).bit_length()


def _distance_bits(grid_size: tuple[int, ...]) -> int:
    return sum((side - 1) ** 2 for side in grid_size).bit_length()


def num_nearest_uniforms(grid_size: tuple[int, ...]) -> int:
    """Uniforms that `nearest_order` takes for each sample, beside those of the centre."""
    return len(grid_size) + 1


def nearest_order(
    grid_size: tuple[int, ...],
    centre: Int[Tensor, "b 1"],
    uniforms: Float[Tensor, "b u"],
    members: Bool[Tensor, "b N"],
    length: int,
) -> Int[Tensor, "b length"]:
    r"""The first positions by their distance from the centre; `members` before all others.

    Positions at one distance are ordered along a random direction, so that the last ring is cut
    from one side; where that ties too, by position, half of the time from the last one.

    With squared distance $|x - c|^2$, weights $w$ of the direction and position $p$ the order is
    that of $2^s |x - c|^2 + w x$ and then $\pm p$, in one integer. Up to terms that are equal for
    all positions of a sample it is linear in $x$, $|x|^2$ and $p$, so one product of matrices gives
    the keys of the batch. They are exact in float64.

    Example: on 14 x 14, $|x - c|^2$ is at most 338, and with weights from -15 to 15 the tilt $w x$
    has a range of 780. So $s$ = 10, and with 8 bits for the position a key is below 2^28.
    """
    reach = sum(side - 1 for side in grid_size)
    position_bits, distance_bits = _position_bits(grid_size), _distance_bits(grid_size)
    # Long axes leave fewer bits for the direction, and at last none.
    weight = min(15, (2 ** (_EXACT_BITS - position_bits - distance_bits) - 1) // (2 * reach))
    tilt_bits = (2 * weight * reach).bit_length()
    num_bits = position_bits + tilt_bits + distance_bits

    table = _position_table(grid_size, centre.device)  # x, |x|^2, p, 1 in a row for each position
    at_centre = table[centre.squeeze(1)]
    x, square = at_centre[:, :-3], at_centre[:, -3:-2]
    tilt = torch.floor(uniforms[:, :-1] * (2 * weight + 1)) - weight
    sign = torch.where(uniforms[:, -1:] < 0.5, -1.0, 1.0)
    unit, last = 2.0 ** (position_bits + tilt_bits), 2**position_bits - 1
    constant = square * unit + weight * reach * 2**position_bits + (sign < 0) * last
    factors = torch.cat(
        [tilt * 2**position_bits - 2 * unit * x, torch.full_like(square, unit), sign, constant], 1
    )
    keys = (factors @ table.T).to(torch.int32 if num_bits <= 30 else torch.int64)
    keys |= (~members).to(keys.dtype) << num_bits
    position = sort_rows(keys)[:, :length] & last
    return torch.where(sign > 0, position, last - position)


@lru_cache(maxsize=64)
def _position_table(
    grid_size: tuple[int, ...], device: torch.device
) -> Float[Tensor, "N axes_and_3"]:
    """For each position its coordinates, their sum of squares, its number and 1."""
    axes = [torch.arange(side, dtype=torch.float64, device=device) for side in grid_size]
    x = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)
    number = torch.arange(len(x), dtype=torch.float64, device=device)[:, None]
    return torch.cat([x, (x * x).sum(1, keepdim=True), number, torch.ones_like(number)], dim=1)
