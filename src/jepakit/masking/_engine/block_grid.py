"""Blocks of given sizes on a grid: where they fit and what they cover, for a whole batch at once.

The engine works on padded masks: int32 masks of zeros and ones over the grid with one empty slice
before the first of every axis, flat, `[b, (H + 1) * (W + 1)]`. Their cumulative sums are their
summed-area tables. The place of a block is the padded position one step before its first cell along
every axis. Grids of one, two and three axes are handled alike.

A worked example on a 4 x 4 grid, with a mask of three members:

    mask         padded mask     summed-area table
                 0 0 0 0 0       0 0 0 0 0
    0 0 0 0      0 0 0 0 0       0 0 0 0 0
    0 1 1 0      0 0 1 1 0       0 0 1 2 2
    0 1 0 0      0 0 1 0 0       0 0 2 3 3
    0 0 0 0      0 0 0 0 0       0 0 2 3 3

Entry (i, j) of the table counts the members in the first i rows and j columns of the grid. A block
of h x w that starts at the grid's cell (i, j) has the place (i, j) on the padded grid and covers

    table[i + h, j + w] - table[i, j + w] - table[i + h, j] + table[i, j]

members. For 2 x 2 blocks: from (1, 1) on 3 - 0 - 0 + 0 = 3, from (2, 2) on 3 - 2 - 2 + 1 = 0. For
all places at once it is one difference along each axis, table[i + h, :] - table[i, :] first:

    rows             and columns
    0 0 1 2 2        1 2 1
    0 0 2 3 3        2 3 1
    0 0 1 1 1        1 1 0
"""

import math
from functools import cached_property, lru_cache, reduce
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from jepakit._checks import values_readable
from jepakit.tokens import TokenSet


class DrawnPlaces(NamedTuple):
    """A place for each sample, and whether there was one to draw; `place` is arbitrary if not."""

    place: Int[Tensor, " b"]
    exists: Bool[Tensor, " b"]


class BlockGrid:
    """A grid with blocks of one size for the batch, or of one size for each sample.

    Args:
        grid_size: Grid in patches.
        sizes: One row for the batch, or one for each sample. On an accelerator their values are
            not looked at, and blocks are placed without a host synchronisation.
    """

    def __init__(self, grid_size: tuple[int, ...], sizes: Int[Tensor, "k axes"]) -> None:
        self.grid_size, self.sizes = grid_size, sizes
        padded_size = tuple(side + 1 for side in grid_size)
        self.padded_strides = _strides(padded_size)
        readable = values_readable(sizes)
        self._single_size: list[int] | None = None
        if readable and len(sizes) == 1:
            self._single_size = sizes[0].tolist()
        smallest = sizes.amin(dim=0).tolist() if readable else [1] * len(grid_size)
        # `covered_cells` takes one difference along each axis, in flat order. The last `side *
        # stride` entries have no partner, so each difference is that much shorter. In the example
        # above: 25, 25 - 2 * 5 = 15, 15 - 2 * 1 = 13 entries. The smallest size counts, and the
        # last number is that of the places: after it, in flat order, no block fits.
        self._lengths = [math.prod(padded_size)]
        for side, stride in zip(smallest, self.padded_strides, strict=True):
            self._lengths.append(self._lengths[-1] - side * stride)

    @classmethod
    def of_sizes(cls, grid_size: tuple[int, ...], sizes: Int[Tensor, "k axes"]) -> "BlockGrid":
        """Blocks of some sizes on the CPU; for a single size, what was built for it before."""
        if len(sizes) == 1:
            return _of_one_size(grid_size, tuple(sizes[0].tolist()))
        return cls(grid_size, sizes)

    @cached_property
    def volumes(self) -> Int[Tensor, " k"]:
        """Cells of a block."""
        return self.sizes.prod(dim=1)

    @cached_property
    def largest_volume(self) -> int:
        """Cells of the largest block; a host synchronisation on an accelerator."""
        return int(self.volumes.max())

    def of_samples(self, samples: Int[Tensor, " k"]) -> "BlockGrid":
        """The blocks of some samples of the batch."""
        if len(self.sizes) == 1:
            return self
        return BlockGrid(self.grid_size, self.sizes[samples])

    @cached_property
    def fits(self) -> Bool[Tensor, "k p"]:
        """True for places at which the whole block is on the grid."""
        place = torch.arange(self._lengths[-1], device=self.sizes.device)
        fits = torch.ones_like(self.sizes[:, :1], dtype=torch.bool)
        for axis, first in enumerate(self._coordinates(place)):
            fits = fits & (first <= self.grid_size[axis] - self.sizes[:, axis, None])
        return fits

    def fits_within(
        self, first: Int[Tensor, "b axes"], extent: Int[Tensor, "b axes"]
    ) -> Bool[Tensor, "b p"]:
        """True for places at which the whole block is in a box, one for each sample."""
        place = torch.arange(self._lengths[-1], device=self.sizes.device)
        fits = torch.ones_like(first[:, :1], dtype=torch.bool)
        for axis, cell in enumerate(self._coordinates(place)):
            start = first[:, axis, None]
            fits = fits & (cell >= start)
            fits = fits & (cell <= start + extent[:, axis, None] - self.sizes[:, axis, None])
        return fits

    def covered_cells(self, table: Int[Tensor, "b t"]) -> Int[Tensor, "b p"]:
        """Members of a mask that a block covers at each place; `table` is its `summed_area`.

        Arbitrary at places where the block does not fit: there the flat differences reach into the
        next row.
        """
        if self._single_size is not None:
            for side, stride in zip(self._single_size, self.padded_strides, strict=True):
                table = table[:, side * stride :] - table[:, : -side * stride]
        else:
            for partner in self._difference_partners:
                table = table.gather(1, partner) - table[:, : partner.shape[1]]
        return table

    @cached_property
    def _difference_partners(self) -> list[Int[Tensor, "k q"]]:
        """For each axis, indices of the entries one block length further, clamped to the table."""
        partners = []
        for axis, (before, after) in enumerate(pairwise(self._lengths)):
            step = self.sizes[:, axis, None] * self.padded_strides[axis]
            entry = torch.arange(after, device=self.sizes.device)
            partners.append((entry + step).clamp_max(before - 1))
        return partners

    def draw_places(
        self, uniforms: Float[Tensor, "b m"], *, within: tuple[int, ...] | None = None
    ) -> Int[Tensor, "b m"]:
        """Draw places for each sample, uniform on the grid or on its first `within` cells."""
        sides = self.grid_size if within is None else within
        counts = [side + 1 - self.sizes[:, axis, None] for axis, side in enumerate(sides)]
        count = reduce(torch.mul, counts)
        rest = torch.minimum((uniforms * count).long(), count - 1)
        if within is None and self._single_size is not None:
            return self._all_places[rest]
        place = torch.zeros_like(rest)
        for axis in reversed(range(len(counts))):
            place = place + rest % counts[axis] * self.padded_strides[axis]
            rest = rest // counts[axis]
        return place

    @cached_property
    def _all_places(self) -> Int[Tensor, " places"]:
        """Places of blocks of one size, ascending."""
        return self.fits[0].nonzero().squeeze(1)

    def draw_allowed_place(
        self, allowed: Bool[Tensor, "b p"], uniforms: Float[Tensor, " b"]
    ) -> DrawnPlaces:
        """One of the allowed places at which the block fits, all equally likely."""
        # With m places and a uniform u it is place number floor(u m) + 1, counted by `rank`.
        rank = (allowed & self.fits).cumsum(1, dtype=torch.int32)
        total = rank[:, -1]
        chosen = torch.minimum((uniforms * total).int(), total - 1)
        place = torch.searchsorted(rank, chosen[:, None] + 1).squeeze(1)
        return DrawnPlaces(place, total > 0)

    def padded_mask(self, place: Int[Tensor, " b"]) -> Int[Tensor, "b t"]:
        """The padded mask of a block for each sample."""
        inside = torch.ones_like(place[:, None], dtype=torch.int32)
        if self._single_size is not None:
            for table in self._cells_along_axes:
                inside = (inside[:, :, None] * table[place][:, None]).flatten(1)
            return inside
        for axis, before in enumerate(self._coordinates(place)):
            along_axis = self._cells_along(axis, before, self.sizes[:, axis])
            inside = (inside[:, :, None] * along_axis[:, None]).flatten(1)
        return inside

    @cached_property
    def _cells_along_axes(self) -> list[Int[Tensor, "p _"]]:
        """For blocks of one size, `_cells_along` each axis at every place."""
        place = torch.arange(self._lengths[-1], device=self.sizes.device)
        return [
            self._cells_along(axis, before, self.sizes[:, axis]).int()
            for axis, before in enumerate(self._coordinates(place))
        ]

    def _cells_along(
        self, axis: int, before: Int[Tensor, " b"], size: Int[Tensor, " k"]
    ) -> Bool[Tensor, "b _"]:
        """True for the cells along an axis that a block covers, one before its first one."""
        cell = torch.arange(self.grid_size[axis] + 1, device=before.device)
        return (cell > before[:, None]) & (cell <= (before + size)[:, None])

    def fill_blocks(
        self, padded_mask: Int[Tensor, "b t"], place: Int[Tensor, "b *m"], value: int
    ) -> None:
        """Write a value to all cells of the blocks, in place."""
        cells = place.reshape(len(padded_mask), -1, 1) + self._padded_offsets[:, None]
        padded_mask.scatter_(1, cells.flatten(1), value)

    def token_sets(self, place: Int[Tensor, "b m"]) -> TokenSet:
        """The cells of blocks as sets, `[b, m, largest_volume]`."""
        idx = self._first_cells[place][:, :, None] + self._offsets[:, None]
        if int(self.volumes.min()) < self.largest_volume:
            valid = self._cell_exists[:, None].expand_as(idx)
            return TokenSet._trusted(idx * valid, valid, self.grid_size, padded=True)
        # A new tensor, not a view of one that is kept for later calls.
        valid = torch.ones_like(idx, dtype=torch.bool)
        return TokenSet._trusted(idx, valid, self.grid_size, padded=False)

    @cached_property
    def _cell_exists(self) -> Bool[Tensor, "k a"]:
        """True for those of `largest_volume` entries that are cells of the block."""
        entry = torch.arange(self.largest_volume, device=self.sizes.device)
        return entry < self.volumes[:, None]

    @cached_property
    def _cell_coordinates(self) -> list[Int[Tensor, "k a"]]:
        """Coordinates of a block's cells along each axis, from 0.

        Entries after its volume repeat the first cell, so writing one value to all is safe.
        """
        entry = torch.arange(self.largest_volume, device=self.sizes.device)
        rest = entry[None] * self._cell_exists
        coordinates = []
        for side in reversed(self.sizes[:, :, None].unbind(1)):
            coordinates.append(rest % side)
            rest = rest // side
        return coordinates[::-1]

    @cached_property
    def _first_cells(self) -> Int[Tensor, " p"]:
        """The grid's cell at which the block at a place begins."""
        place = torch.arange(self._lengths[-1], device=self.sizes.device)
        return _flat_positions(self._coordinates(place), _strides(self.grid_size))

    @cached_property
    def _offsets(self) -> Int[Tensor, "k a"]:
        """Flat distances of a block's cells from its first cell, on the grid."""
        return _flat_positions(self._cell_coordinates, _strides(self.grid_size))

    @cached_property
    def _padded_offsets(self) -> Int[Tensor, "k a"]:
        """Flat distances of a block's cells from its place, on the padded grid."""
        return _flat_positions(self._cell_coordinates, self.padded_strides) + sum(
            self.padded_strides
        )

    def _coordinates(self, place: Int[Tensor, "*b"]) -> list[Int[Tensor, "*b"]]:
        """Coordinates of a place along each axis: those of the block's first cell on the grid."""
        coordinates = []
        for stride in self.padded_strides:
            coordinates.append(place // stride)
            place = place % stride
        return coordinates


@lru_cache(maxsize=256)
def _of_one_size(grid_size: tuple[int, ...], size: tuple[int, ...]) -> BlockGrid:
    return BlockGrid(grid_size, torch.tensor([size], device="cpu"))


def summed_area(padded_mask: Int[Tensor, "b t"], grid_size: tuple[int, ...]) -> Int[Tensor, "b t"]:
    """Sums of a padded mask over all cells up to each position along every axis, inclusive."""
    table = padded_mask.view(-1, *(side + 1 for side in grid_size))
    for axis in range(len(grid_size), 0, -1):
        table = table.cumsum(axis, dtype=torch.int32)
    return table.flatten(1)


def add_padding(mask: Bool[Tensor, "b N"], grid_size: tuple[int, ...]) -> Int[Tensor, "b t"]:
    """The padded mask of a flat mask."""
    return pad(mask.view(-1, *grid_size).int(), (1, 0) * len(grid_size)).flatten(1)


def remove_padding(
    padded_mask: Int[Tensor, "*b t"], grid_size: tuple[int, ...]
) -> Bool[Tensor, "*b N"]:
    """The flat mask of a padded mask."""
    batch = padded_mask.shape[:-1]
    grid = padded_mask.view(*batch, *(side + 1 for side in grid_size))
    for axis, side in enumerate(grid_size, start=len(batch)):
        grid = grid.narrow(axis, 1, side)
    return grid.flatten(len(batch)).bool()


def _flat_positions(coordinates: list[Int[Tensor, "*b"]], strides: list[int]) -> Int[Tensor, "*b"]:
    return reduce(torch.add, (x * stride for x, stride in zip(coordinates, strides, strict=True)))


def _strides(sides: tuple[int, ...]) -> list[int]:
    """Steps in flat order from one cell to the next along each axis."""
    return [math.prod(sides[axis + 1 :]) for axis in range(len(sides))]
