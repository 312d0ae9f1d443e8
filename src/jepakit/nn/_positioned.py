"""Base class of modules that hold positions, learned for some grids or fixed for all."""

import math
from collections.abc import Callable
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepakit._checks import as_bool, as_choice
from jepakit.nn.blocks import RotaryPairs
from jepakit.nn.positions import Kind, check_width, diagonal_table, grid_table

Position = Literal["sincos", "rope", "rope-vjepa2", "learned"]

# Grids with sides of up to so many patches are looked up: 4,096 pixels in patches of 16.
_TABLE_SIDE = 256
_CPU = torch.device("cpu")


class Positioned(nn.Module):
    """A module with a table of positions: embeddings, or cosines and sines if they are rotary."""

    position_table: Tensor

    def _add_positions(
        self,
        position: Position,
        grid_sizes: tuple[tuple[int, ...], ...],
        dim: int,
        num_heads: int,
        *,
        uniform_power: bool,
        dim_name: str,
    ) -> None:
        """Add the table; `grid_sizes` are those of the levels of a pyramid, the finest first."""
        self.position = as_choice(
            "position", position, ("sincos", "rope", "rope-vjepa2", "learned")
        )
        self.uniform_power = as_bool("uniform_power", uniform_power)
        self.grid_size = grid_sizes[0]
        self.grid_sizes = grid_sizes
        if not self.uniform_power and self.position != "sincos":
            raise ValueError("uniform_power=False: must come with position='sincos'")
        if self.position == "learned":
            # A row for each position of each level, the finest first: for 4 x 4 patches and 2
            # levels, rows 0 to 15 are the patches and rows 16 to 19 the 2 x 2 cells.
            num_rows = sum(math.prod(grid) for grid in grid_sizes)
            self.position_table = nn.Parameter(torch.zeros(num_rows, dim))
            return
        self._position_width = dim // num_heads if self._is_rotary else dim
        check_width(self._kind, len(self.grid_size), self._position_width, dim_name)
        # A row for each coordinate, for all grids. It follows from the arguments and is not part of
        # a checkpoint.
        self.register_buffer("position_table", self._fixed_table(), persistent=False)

    @property
    def _is_rotary(self) -> bool:
        return self.position in ("rope", "rope-vjepa2")

    @property
    def _rotary_pairs(self) -> RotaryPairs:
        return "adjacent" if self.position == "rope-vjepa2" else "halves"

    @property
    def _kind(self) -> Kind:
        return cast(Kind, self.position if self.uniform_power else "sincos-half-time")

    @property
    def _takes_any_grid(self) -> bool:
        return self.position != "learned" and len(self.grid_sizes) == 1

    def _fixed_table(self, device: torch.device | None = None, side: int = 0) -> Tensor:
        longest = max(side, _TABLE_SIDE, *self.grid_size)
        axes = len(self.grid_size)
        return diagonal_table(self._kind, axes, self._position_width, longest, device)

    def _position_rows(self, grid_size: tuple[int, ...], level: int = 0) -> Float[Tensor, "N w"]:
        """Rows of the position table for all positions of a grid."""
        if self.position == "learned":
            first = sum(math.prod(grid) for grid in self.grid_sizes[:level])
            return self.position_table[first : first + math.prod(grid_size)]
        finest = grid_size if self._takes_any_grid else self.grid_size
        table = self.position_table
        # Each side on its own: with `max`, torch 2.6 compiles 12 x 16 and 16 x 12 patches apart.
        if any(2 * side > len(table) for side in finest):
            table = self._fixed_table(_CPU, max(finest)).to(table)
        return grid_table(table, self._kind, finest, level)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Positioned":
        # `to`, `half`, `to_empty` and the like end here. A fixed table is in no checkpoint, so it
        # is computed anew: after `to_empty` on a module from the meta device it would hold
        # arbitrary values, and after a conversion to half precision and back it would stay rounded.
        before = self._buffers.get("position_table")  # None where it is learned
        with torch.no_grad():
            # A table that the user has replaced is left alone.
            is_ours = before is not None and (
                before.is_meta or before.equal(self._fixed_table(_CPU).to(before))
            )
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
            if is_ours and not self.position_table.is_meta:
                self.position_table.copy_(self._fixed_table(_CPU))
        return self
