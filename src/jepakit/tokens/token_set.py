"""`TokenSet`: positions on a grid that never travel without their validity."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.fx._pytree import register_pytree_flatten_spec
from torch.utils import _pytree as pytree

from jepakit._checks import TYPECHECK, check_bool, check_device, check_grid_size, check_int
from jepakit.tokens.flat_masks import check_mask, coarsen, list_members
from jepakit.tokens.set_rules import check_set

__all__ = ["TokenSet"]


@dataclass(frozen=True, eq=False, repr=False)
class TokenSet:
    r"""A batch of ragged sets of grid positions, padded to one length.

    With the grid's positions numbered row-major, $p = i W + j$ for row $i$ and column $j$, every
    set lists its positions in ascending order, valid entries first:
    $\mathrm{idx} = (p_1 < \dots < p_k, 0, \dots, 0)$ and
    $\mathrm{valid} = (1, \dots, 1, 0, \dots, 0)$.

    A token set is a pytree whose leaves are `idx` and `valid`, so it passes through
    `torch.compile` and `torch.utils._pytree`. On the CPU its values are checked when it is built.

    Args:
        idx: Positions on the grid, int64, ascending; 0 where not valid.
        valid: True where an entry is a token, False where it only pads.
        grid_size: `(L,)`, `(H, W)` or `(T, H, W)` in patches.
        padded: False promises that every entry is valid, so that no key mask is ever built.
            Known on the host, so that nobody has to read `valid` back.

    Raises:
        TypeError: If `idx` is not an int64 tensor, `valid` not a bool one, or `padded` not a bool.
        ValueError: If the shapes differ, or (on the CPU) if an index is off the grid, not
            ascending, not 0 where not valid, if valid entries do not come first, or if `padded` is
            False although an entry is not valid.

    Example:
        >>> import torch
        >>> tokens = TokenSet.from_mask(torch.tensor([[True, False, True, True],
        ...                                           [False, True, False, False]]), (2, 2))
        >>> tokens.idx
        tensor([[0, 2, 3],
                [1, 0, 0]])
        >>> tokens.valid
        tensor([[ True,  True,  True],
                [ True, False, False]])
        >>> tokens.coverage()
        tensor([0.7500, 0.2500])

    Source:
        jepakit's own. I-JEPA (arXiv:2301.08243) and V-JEPA (arXiv:2404.08471) carry bare indices
        and cut every batch to its shortest set; here nothing is cut and padding is marked.
    """

    idx: Int[Tensor, "*batch n"]
    valid: Bool[Tensor, "*batch n"]
    grid_size: tuple[int, ...]
    padded: bool = True

    def __post_init__(self) -> None:
        check_set(self.idx, self.valid, self.grid_size, self.padded)

    # Building

    @classmethod
    def from_mask(cls, mask: Bool[Tensor, "*batch N"], grid_size: tuple[int, ...]) -> "TokenSet":
        """List the True positions of flat masks, padded to the largest count in the batch.

        Reads the largest and the smallest count back from the mask's device.

        Args:
            mask: True marks a member; flat over the grid, `N = prod(grid_size)`.
            grid_size: The grid in patches.

        Raises:
            TypeError: If `mask` is not bool.
            ValueError: If its last axis is not the grid's number of positions.
        """
        check_mask(mask, grid_size)
        rank = mask.cumsum(dim=-1)
        counts = rank[..., -1]
        if counts.numel() == 0:
            longest = shortest = 0
        else:
            shortest, longest = torch.stack(torch.aminmax(counts)).tolist()
        idx = list_members(mask, rank, longest)
        valid = torch.arange(longest, device=mask.device) < counts.unsqueeze(-1)
        return cls._trusted(idx, valid, grid_size, padded=shortest < longest)

    @classmethod
    def _of_length(
        cls, mask: Bool[Tensor, "*batch N"], length: int, grid_size: tuple[int, ...]
    ) -> "TokenSet":
        """`from_mask` for masks known to have `length` members each; reads nothing back."""
        idx = list_members(mask, mask.cumsum(dim=-1), length)
        return cls._trusted(idx, torch.ones_like(idx, dtype=torch.bool), grid_size, padded=False)

    @classmethod
    def _within(
        cls, mask: Bool[Tensor, "*batch N"], length: int, grid_size: tuple[int, ...]
    ) -> "TokenSet":
        """`from_mask` for masks known to have at most `length` members; reads nothing back."""
        rank = mask.cumsum(dim=-1)
        valid = torch.arange(length, device=mask.device) < rank[..., -1:]
        return cls._trusted(list_members(mask, rank, length), valid, grid_size, padded=True)

    @classmethod
    def _trusted(
        cls, idx: Tensor, valid: Tensor, grid_size: tuple[int, ...], *, padded: bool
    ) -> "TokenSet":
        """For sets that are right by construction: values are looked at in tests only."""
        if TYPECHECK:
            return cls(idx, valid, grid_size, padded)
        return _unflatten((idx, valid), (grid_size, padded))

    @classmethod
    def full(
        cls,
        grid_size: tuple[int, ...],
        batch_shape: Sequence[int] = (),
        *,
        device: torch.device | str | None = None,
    ) -> "TokenSet":
        """Every position of the grid, for each entry of the batch.

        Args:
            grid_size: The grid in patches.
            batch_shape: Leading axes.
            device: Where the tensors live.
        """
        check_grid_size("grid_size", grid_size)
        idx = torch.arange(math.prod(grid_size), device=device).expand(*batch_shape, -1)
        valid = torch.ones_like(idx, dtype=torch.bool)
        return cls._trusted(idx, valid, grid_size, padded=False)

    # Looking

    @property
    def num_positions(self) -> int:
        """Number of positions on the grid, $N$."""
        return math.prod(self.grid_size)

    @property
    def shape(self) -> torch.Size:
        """Shape of `idx`: `[*batch, n]`."""
        return self.idx.shape

    @property
    def device(self) -> torch.device:
        """Device of both tensors."""
        return self.idx.device

    def to_mask(self) -> Bool[Tensor, "*batch N"]:
        """Flat masks over the grid: True at members."""
        size = self.num_positions
        # Padding is sent past the end, so that it cannot erase a member at position 0.
        slot = torch.where(self.valid, self.idx, size)
        mask = self.valid.new_zeros((*self.shape[:-1], size + 1)).scatter(-1, slot, True)
        return mask[..., :size]

    def counts(self) -> Int[Tensor, "*batch"]:
        """Number of valid entries of every set."""
        return self.valid.sum(dim=-1)

    def coverage(self) -> Float[Tensor, "*batch"]:
        """Fraction of the grid that every set covers."""
        return self.counts() / self.num_positions

    def complement(self) -> "TokenSet":
        """The positions that are not members; of padded sets, reads counts back as `from_mask`."""
        mask = ~self.to_mask()
        if self.padded:
            return TokenSet.from_mask(mask, self.grid_size)
        return TokenSet._of_length(mask, mask.shape[-1] - self.shape[-1], self.grid_size)

    def coarsen(self, levels: int = 1) -> "TokenSet":
        """The cells of a coarser grid that hold a member; reads counts back, as `from_mask` does.

        Every side of the grid is halved `levels` times, upwards: a cell is a window of
        `2**levels` positions along each axis, cut off by the border.

        Args:
            levels: How often to halve.

        Raises:
            ValueError: If there are more halvings than it takes to a single cell.
        """
        check_int("levels", levels, minimum=0)
        most = max(side - 1 for side in self.grid_size).bit_length()
        if levels > most:
            raise ValueError(
                f"levels={levels}: the grid {self.grid_size} is a single cell after {most}"
            )
        mask, coarse = coarsen(self.to_mask(), self.grid_size, 2**levels)
        return TokenSet.from_mask(mask, coarse)

    # Moving

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "TokenSet":
        """The same set on another device.

        Args:
            device: Where to.
            non_blocking: As in `torch.Tensor.to`.

        Raises:
            TypeError: If `device` is something else, such as a dtype.
        """
        check_device("device", device)
        check_bool("non_blocking", non_blocking)
        idx = self.idx.to(device, non_blocking=non_blocking)
        return self._moved(idx, self.valid.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "TokenSet":
        """The same set in page-locked memory; `DataLoader(pin_memory=True)` calls this."""
        return self._moved(self.idx.pin_memory(), self.valid.pin_memory())

    def _moved(self, idx: Tensor, valid: Tensor) -> "TokenSet":
        return _unflatten((idx, valid), (self.grid_size, self.padded))

    def __getitem__(self, index: Any) -> "TokenSet":
        """Index the batch axes; the set itself stays whole.

        Args:
            index: Anything that indexes a tensor of shape `[*batch]`.
        """
        if self.idx.dim() == 1:
            # No IndexError: iteration would take that for its end and see nothing.
            raise TypeError("this TokenSet has no batch axis to index; its entries are one set")
        # The slots of a set are no axis to index: a slice would drop tokens in raster order.
        at = (*index, slice(None)) if isinstance(index, tuple) else (index, slice(None))
        idx, valid = self.idx[at], self.valid[at]
        return self._moved(idx, valid)

    def __repr__(self) -> str:
        where = "" if self.device.type == "cpu" else f", device='{self.device}'"
        return (
            f"TokenSet(shape={tuple(self.shape)}, grid_size={self.grid_size}, "
            f"padded={self.padded}{where})"
        )


def _flatten(tokens: TokenSet) -> tuple[list[Any], Any]:
    return [tokens.idx, tokens.valid], (tokens.grid_size, tokens.padded)


def _unflatten(leaves: Any, static: Any) -> TokenSet:
    # Values were checked when the set was built, and a pytree's leaves may be anything.
    tokens = object.__new__(TokenSet)
    for name, value in zip(
        ("idx", "valid", "grid_size", "padded"), (*leaves, *static), strict=True
    ):
        object.__setattr__(tokens, name, value)
    return tokens


def _flatten_with_keys(tokens: TokenSet) -> tuple[list[tuple[Any, Any]], Any]:
    leaves, static = _flatten(tokens)
    keys = [pytree.GetAttrKey("idx"), pytree.GetAttrKey("valid")]
    return list(zip(keys, leaves, strict=True)), static


# The last three are what `torch.export` needs; JSON would make a list of the grid's size.
pytree.register_pytree_node(
    TokenSet,
    _flatten,
    _unflatten,
    serialized_type_name="jepakit.tokens.TokenSet",
    flatten_with_keys_fn=_flatten_with_keys,
    to_dumpable_context=lambda static: [list(static[0]), static[1]],
    from_dumpable_context=lambda dumped: (tuple(dumped[0]), dumped[1]),
)
register_pytree_flatten_spec(TokenSet, lambda tokens, _: [tokens.idx, tokens.valid])
