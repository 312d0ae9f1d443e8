"""Where blocks of given sizes fit on a grid and what they cover, for a whole batch at once.

A field is an int32 grid of zeros and ones with an empty row and column in front, flat:
`[b, (H + 1) * (W + 1)]`. So its cumulative sums are its summed-area table. The place of a block is
a position on that padded grid, up and left of the block's first cell: there the table is read.
"""

from functools import cached_property

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
        grid_size: tuple[int, int],
        h: Int[Tensor, " k"],
        w: Int[Tensor, " k"],
        *,
        device: torch.device | str | None = None,
    ) -> None:
        height, width = grid_size
        self.grid_size = grid_size
        self.stride = width + 1
        # Read here, on the CPU, so that nothing is ever read back from an accelerator.
        area = h * w
        self.length = int(area.max())
        self.one_length = int(area.min()) == self.length
        self.one_size = (int(h[0]), int(w[0])) if len(h) == 1 else None
        # Past these counts, in raster order, no block fits.
        self.num_bands = (height + 1 - int(h.min())) * self.stride
        self.num_places = self.num_bands - int(w.min())

        self.h, self.w = copy_to(h, device), copy_to(w, device)

    @cached_property
    def exists(self) -> Bool[Tensor, "k a"]:
        """Which of `length` entries are cells of the block."""
        return torch.arange(self.length, device=self.h.device) < (self.h * self.w)[:, None]

    @cached_property
    def _cells(self) -> tuple[Int[Tensor, "k a"], Int[Tensor, "k a"]]:
        """Rows and columns of a block's cells; entries past its area repeat the first cell."""
        entry, w = torch.arange(self.length, device=self.h.device), self.w[:, None]
        return entry // w * self.exists, entry % w * self.exists

    @cached_property
    def _offset(self) -> Int[Tensor, "k a"]:
        row, column = self._cells
        return (row + 1) * self.stride + column + 1

    @cached_property
    def _grid_offset(self) -> Int[Tensor, "k a"]:
        row, column = self._cells
        return row * self.grid_size[1] + column

    @cached_property
    def fits(self) -> Bool[Tensor, "k p"]:
        """Places at which a block is whole on the grid."""
        height, width = self.grid_size
        place = torch.arange(self.num_places, device=self.h.device)
        row, column = place // self.stride, place % self.stride
        return (row <= (height - self.h)[:, None]) & (column <= (width - self.w)[:, None])

    @cached_property
    def _lookup(self) -> tuple[Int[Tensor, "k q"], Int[Tensor, "k p"]]:
        """Where `sums` reads the table below each band and right of each place."""
        height, _ = self.grid_size
        band = torch.arange(self.num_bands, device=self.h.device)
        # Where a block sticks out, anything on the table will do: it is never chosen there.
        below = (band + (self.h * self.stride)[:, None]).clamp_max((height + 1) * self.stride - 1)
        right = (band[: self.num_places] + self.w[:, None]).clamp_max(self.num_bands - 1)
        return below, right

    def sums(self, table: Int[Tensor, "b t"]) -> Int[Tensor, "b p"]:
        """How much of a field a block would cover at each place; `table` is its `summed_area`."""
        if self.one_size is not None:
            h, w = self.one_size
            bands = table[:, h * self.stride :] - table[:, : self.num_bands]
            return bands[:, w:] - bands[:, : self.num_places]
        below, right = self._lookup
        bands = table.gather(1, below) - table[:, : self.num_bands]
        return bands.gather(1, right) - bands[:, : self.num_places]

    def anywhere(self, uniforms: Float[Tensor, " b"]) -> Int[Tensor, " b"]:
        """A place for each sample, all on the grid equally likely."""
        height, width = self.grid_size
        columns = width + 1 - self.w
        count = (height + 1 - self.h) * columns
        chosen = torch.minimum((uniforms * count).long(), count - 1)
        return chosen // columns * self.stride + chosen % columns

    def among(
        self, allowed: Bool[Tensor, "b p"], uniforms: Float[Tensor, " b"]
    ) -> tuple[Int[Tensor, " b"], Bool[Tensor, " b"]]:
        """One of the allowed places for each sample, all equally likely, and whether any was."""
        order = (allowed & self.fits).cumsum(1, dtype=torch.int32)
        total = order[:, -1]
        chosen = torch.minimum((uniforms * total).int(), total - 1)
        return torch.searchsorted(order, chosen[:, None] + 1).squeeze(1), total > 0

    def token_sets(self, place: Int[Tensor, "b m"]) -> TokenSet:
        """The cells of blocks, `[b, m, a]`."""
        first = place - place // self.stride
        idx = first[:, :, None] + self._grid_offset[:, None]
        valid = self.exists[:, None].expand_as(idx)
        if not self.one_length:
            idx = idx * valid
        return TokenSet._trusted(idx, valid, self.grid_size, padded=not self.one_length)

    def field(self, place: Int[Tensor, " b"]) -> Int[Tensor, "b t"]:
        """A field with one block for each sample."""
        row, column = (torch.arange(n + 1, device=place.device) for n in self.grid_size)
        above, left = (place // self.stride)[:, None], (place % self.stride)[:, None]
        rows = (row > above) & (row <= above + self.h[:, None])
        columns = (column > left) & (column <= left + self.w[:, None])
        return (rows[:, :, None] & columns[:, None]).flatten(1).int()

    def paint(self, field: Int[Tensor, "b t"], place: Int[Tensor, "b *m"], value: int) -> None:
        """Write a value to all cells of the blocks, in place."""
        cells = place.view(len(field), -1, 1) + self._offset[:, None]
        field.scatter_(1, cells.flatten(1), value)


def summed_area(field: Int[Tensor, "b t"], grid_size: tuple[int, int]) -> Int[Tensor, "b t"]:
    """Sums of a field over all cells up and left of each position, itself included."""
    rows = field.view(-1, grid_size[0] + 1, grid_size[1] + 1)
    return rows.cumsum(2, dtype=torch.int32).cumsum(1, dtype=torch.int32).flatten(1)


def to_mask(field: Int[Tensor, "b t"], grid_size: tuple[int, int]) -> Bool[Tensor, "b N"]:
    """The field without its padding, as flat masks."""
    rows = field.view(-1, grid_size[0] + 1, grid_size[1] + 1)
    return rows[:, 1:, 1:].flatten(1).bool()
