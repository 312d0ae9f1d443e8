"""Where blocks of given sizes fit on a grid and what they cover, for a whole batch at once.

A field is an int32 grid of zeros and ones with an empty slice in front of every axis, flat:
`[b, (H + 1) * (W + 1)]`. So its cumulative sums are its summed-area table. The place of a block is
a position on that padded grid, up and left of the block's first cell: there the table is read.
Grids of one, two and three axes are all the same here.
"""

import math
from functools import cached_property, reduce
from itertools import accumulate

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jepakit.masking.uniforms import copy_to
from jepakit.tokens import TokenSet

__all__: list[str] = []


class Blocks:
    """Blocks of one size for the batch, or of one for each sample; sizes are given on the CPU."""

    def __init__(
        self,
        grid_size: tuple[int, ...],
        sizes: Int[Tensor, "k axes"],
        *,
        device: torch.device | str | None = None,
    ) -> None:
        self.grid_size = grid_size
        self.strides = _strides(tuple(side + 1 for side in grid_size))
        # Read here, on the CPU, so that nothing is ever read back from an accelerator.
        volumes = sizes.prod(dim=1)
        self.length = int(volumes.max())
        self.one_length = int(volumes.min()) == self.length
        self.one_size: list[int] | None = sizes[0].tolist() if len(sizes) == 1 else None
        # How many differences of the table there are after each axis: past them, in raster order,
        # no block fits.
        steps = (n * s for n, s in zip(sizes.amin(dim=0).tolist(), self.strides, strict=True))
        total = math.prod(side + 1 for side in grid_size)
        self._counts = list(accumulate(steps, lambda left, step: left - step, initial=total))
        self.sizes = copy_to(sizes, device)

    @cached_property
    def exists(self) -> Bool[Tensor, "k a"]:
        """Which of `length` entries are cells of the block."""
        entry = torch.arange(self.length, device=self.sizes.device)
        return entry < self.sizes.prod(dim=1, keepdim=True)

    @cached_property
    def _cells(self) -> list[Int[Tensor, "k a"]]:
        """Coordinates of a block's cells along each axis; entries past its volume repeat the first.

        So writing one value to all of them is safe.
        """
        rest = torch.arange(self.length, device=self.sizes.device)[None] * self.exists
        cells = []
        for side in reversed(self.sizes[:, :, None].unbind(1)):
            cells.append(rest % side)
            rest = rest // side
        return cells[::-1]

    @cached_property
    def _offsets(self) -> Int[Tensor, "k a"]:
        return _raster(self._cells, _strides(self.grid_size))

    @cached_property
    def _padded_offsets(self) -> Int[Tensor, "k a"]:
        return _raster(self._cells, self.strides) + sum(self.strides)

    @cached_property
    def fits(self) -> Bool[Tensor, "k p"]:
        """Places at which a block is whole on the grid."""
        place = torch.arange(self._counts[-1], device=self.sizes.device)
        whole = [
            coordinate <= (side - self.sizes[:, axis, None])
            for axis, (side, coordinate) in enumerate(
                zip(self.grid_size, self._coordinates(place), strict=True)
            )
        ]
        return reduce(torch.logical_and, whole)

    @cached_property
    def _ahead(self) -> list[Int[Tensor, "k q"]]:
        """Where `sums` reads the table one block further along each axis."""
        # Where a block sticks out, anything on the table will do: it is never chosen there.
        return [
            (
                torch.arange(after, device=self.sizes.device) + self.sizes[:, axis, None] * stride
            ).clamp_max(before - 1)
            for axis, (stride, before, after) in enumerate(
                zip(self.strides, self._counts[:-1], self._counts[1:], strict=True)
            )
        ]

    def sums(self, table: Int[Tensor, "b t"]) -> Int[Tensor, "b p"]:
        """How much of a field a block would cover at each place; `table` is its `summed_area`."""
        if self.one_size is not None:
            for side, stride in zip(self.one_size, self.strides, strict=True):
                table = table[:, side * stride :] - table[:, : -side * stride]
        else:
            for ahead in self._ahead:
                table = table.gather(1, ahead) - table[:, : ahead.shape[1]]
        return table

    def anywhere(
        self, uniforms: Float[Tensor, " b"], *, within: tuple[int, ...] | None = None
    ) -> Int[Tensor, " b"]:
        """A place for each sample, all on the grid (`within` its first cells) equally likely."""
        sides = self.grid_size if within is None else within
        counts = [side + 1 - self.sizes[:, axis] for axis, side in enumerate(sides)]
        count = reduce(torch.mul, counts)
        rest = torch.minimum((uniforms * count).long(), count - 1)
        place = torch.zeros_like(rest)
        for axis in reversed(range(len(counts))):
            place = place + rest % counts[axis] * self.strides[axis]
            rest = rest // counts[axis]
        return place

    def among(
        self, allowed: Bool[Tensor, "b p"], uniforms: Float[Tensor, " b"]
    ) -> tuple[Int[Tensor, " b"], Bool[Tensor, " b"]]:
        """One of the allowed places for each sample, all equally likely, and whether any was."""
        order = (allowed & self.fits).cumsum(1, dtype=torch.int32)
        total = order[:, -1]
        chosen = torch.minimum((uniforms * total).int(), total - 1)
        return torch.searchsorted(order, chosen[:, None] + 1).squeeze(1), total > 0

    def field(self, place: Int[Tensor, " b"]) -> Int[Tensor, "b t"]:
        """A field with one block for each sample."""
        inside = torch.ones(1, 1, dtype=torch.int32, device=place.device)
        for axis, (side, before) in enumerate(
            zip(self.grid_size, self._coordinates(place), strict=True)
        ):
            cell, first = torch.arange(side + 1, device=place.device), before[:, None]
            along = (cell > first) & (cell <= first + self.sizes[:, axis, None])
            inside = (inside[:, :, None] * along[:, None]).flatten(1)
        return inside

    def paint(self, field: Int[Tensor, "b t"], place: Int[Tensor, "b *m"], value: int) -> None:
        """Write a value to all cells of the blocks, in place."""
        cells = place.view(len(field), -1, 1) + self._padded_offsets[:, None]
        field.scatter_(1, cells.flatten(1), value)

    def token_sets(self, place: Int[Tensor, "b m"]) -> TokenSet:
        """The cells of blocks, `[b, m, a]`."""
        first = _raster(self._coordinates(place), _strides(self.grid_size))
        idx = first[:, :, None] + self._offsets[:, None]
        valid = self.exists[:, None].expand_as(idx)
        if not self.one_length:
            idx = idx * valid
        return TokenSet._trusted(idx, valid, self.grid_size, padded=not self.one_length)

    def _coordinates(self, place: Int[Tensor, "*b"]) -> list[Int[Tensor, "*b"]]:
        """Coordinates along each axis, on the padded grid."""
        coordinates = []
        for stride in self.strides:
            coordinates.append(place // stride)
            place = place % stride
        return coordinates


def summed_area(field: Int[Tensor, "b t"], grid_size: tuple[int, ...]) -> Int[Tensor, "b t"]:
    """Sums of a field over all cells up and left of each position, itself included."""
    table = field.view(-1, *(side + 1 for side in grid_size))
    for axis in range(len(grid_size), 0, -1):
        table = table.cumsum(axis, dtype=torch.int32)
    return table.flatten(1)


def to_mask(field: Int[Tensor, "b t"], grid_size: tuple[int, ...]) -> Bool[Tensor, "b N"]:
    """The field without its padding, as flat masks."""
    grid = field.view(-1, *(side + 1 for side in grid_size))
    return grid[(slice(None), *(slice(1, None) for _ in grid_size))].flatten(1).bool()


def _raster(coordinates: list[Int[Tensor, "*b"]], strides: list[int]) -> Int[Tensor, "*b"]:
    """Flat positions of coordinates."""
    return reduce(torch.add, (x * stride for x, stride in zip(coordinates, strides, strict=True)))


def _strides(sides: tuple[int, ...]) -> list[int]:
    """Steps in raster order from one cell to the next along each axis."""
    return [math.prod(sides[axis + 1 :]) for axis in range(len(sides))]
