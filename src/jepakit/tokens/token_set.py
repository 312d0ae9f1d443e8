"""`TokenSet`: positions on a grid together with their validity."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.fx._pytree import register_pytree_flatten_spec
from torch.nn.functional import pad
from torch.serialization import add_safe_globals
from torch.utils import _pytree as pytree

from jepakit._checks import (
    TYPECHECK,
    as_bool,
    as_grid_size,
    as_int,
    as_ints,
    check_device,
    check_mask,
    check_on_grid,
    check_tensor,
    store_fields,
    type_name,
    values_readable,
)
from jepakit.tokens._grid import (
    coarsen_mask,
    mask_of_indices,
    max_halvings,
    member_positions,
)

__all__ = ["TokenSet"]


class TokenSet:
    r"""A batch of ragged sets of grid positions, padded to one length.

    With the grid's positions numbered row-major, $p = i W + j$ for row $i$ and column $j$, every
    set lists its positions in ascending order, valid entries first:
    $\mathrm{idx} = (p_1 < \dots < p_k, 0, \dots, 0)$ and
    $\mathrm{valid} = (1, \dots, 1, 0, \dots, 0)$.

    A token set is immutable and a pytree whose leaves are `idx` and `valid`, so it passes through
    `torch.compile` and `torch.utils._pytree`. On the CPU its values are checked when it is built.

    Args:
        idx: Positions on the grid, int64, ascending; 0 where not valid.
        valid: True where an entry is a token, False where it is padding.
        grid_size: `(L,)`, `(H, W)` or `(T, H, W)` in patches.
        padded: False promises that every entry is valid, so that no key mask is ever built. It is
            a plain bool, so that code can branch on it without a host synchronisation.

    Raises:
        ValueError: If the shapes differ, or (on the CPU) if the values are not as described.

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
        >>> len(tokens), tokens[1:].valid.shape
        (2, torch.Size([1, 3]))

    Source:
        I-JEPA (arXiv:2301.08243) and V-JEPA (arXiv:2404.08471) carry bare indices and cut every
        batch to its shortest set. Difference: nothing is cut, and padding is marked.
    """

    idx: Int[Tensor, "*batch n"]
    valid: Bool[Tensor, "*batch n"]
    grid_size: tuple[int, ...]
    padded: bool

    def __init__(
        self,
        idx: Int[Tensor, "*batch n"],
        valid: Bool[Tensor, "*batch n"],
        grid_size: Sequence[int],
        padded: bool = True,
    ) -> None:
        grid = as_grid_size("grid_size", grid_size)
        check_tensor("idx", idx, torch.int64)
        check_tensor("valid", valid, torch.bool)
        as_bool("padded", padded)
        if idx.shape != valid.shape or idx.dim() < 1:
            raise ValueError(
                f"idx {tuple(idx.shape)} and valid {tuple(valid.shape)}: "
                "must have one shape, [*batch, n]"
            )
        if idx.device != valid.device:
            raise ValueError(
                f"idx is on {idx.device}, valid on {valid.device}: must be on one device"
            )
        if values_readable(idx, valid):
            _check_values(idx, valid, grid, padded)
        store_fields(self, idx=idx, valid=valid, grid_size=grid, padded=padded)

    # Building

    @classmethod
    def from_mask(cls, mask: Bool[Tensor, "*batch N"], grid_size: Sequence[int]) -> "TokenSet":
        """List the True positions of flat masks, padded to the largest count in the batch.

        Needs one host synchronisation, for the largest and the smallest count.

        Args:
            mask: True marks a member; flat over the grid, `N = prod(grid_size)`.
            grid_size: The grid in patches.
        """
        grid = as_grid_size("grid_size", grid_size)
        check_mask(mask, grid)
        rank = mask.cumsum(dim=-1)
        counts = rank[..., -1]
        shortest, longest = 0, 0
        if counts.numel() > 0:
            shortest, longest = torch.stack(torch.aminmax(counts)).tolist()
            if torch.compiler.is_compiling():  # what torch 2.6 does not know of a count
                torch._check_is_size(longest)
        idx = member_positions(mask, rank, longest)
        valid = torch.arange(longest, device=mask.device) < counts.unsqueeze(-1)
        return cls._trusted(idx, valid, grid, padded=shortest < longest)

    @classmethod
    def from_indices(
        cls,
        indices: Int[Tensor, "*batch n"] | Sequence[Int[Tensor, " _"]],
        grid_size: Sequence[int],
    ) -> "TokenSet":
        """Sets from bare index tensors, as other samplers and collators return them.

        Padding cannot be recognised among bare indices: where a sampler pads, build the set from
        masks, or with `TokenSet(idx, valid, grid_size)`.

        Args:
            indices: Positions on the grid in any order, signed integers; an index that is listed
                twice counts once. A tensor `[*batch, n]`, or a sequence of vectors of any lengths,
                one for each set.
            grid_size: The grid in patches.

        Example:
            >>> import torch
            >>> TokenSet.from_indices([torch.tensor([3, 1]), torch.tensor([2])], (2, 2)).idx
            tensor([[1, 3],
                    [2, 0]])
        """
        grid = as_grid_size("grid_size", grid_size)
        if isinstance(indices, Tensor):
            return cls.from_mask(mask_of_indices("indices", indices, grid), grid)
        if isinstance(indices, str) or not isinstance(indices, Sequence):
            raise TypeError(
                "indices: must be a tensor of positions or a sequence of them, got "
                f"{type_name(indices)}"
            )
        if len(indices) == 0:
            raise ValueError("indices=[]: must hold at least one vector of positions")
        masks = [mask_of_indices(f"indices[{k}]", idx, grid) for k, idx in enumerate(indices)]
        for number, vector in enumerate(indices):
            if vector.dim() != 1:
                raise ValueError(
                    f"indices[{number}] {tuple(vector.shape)}: must be a vector of positions, [n]"
                )
        return cls.from_mask(torch.stack(masks), grid)

    @classmethod
    def full(
        cls,
        grid_size: Sequence[int],
        batch_shape: Sequence[int] = (),
        *,
        device: torch.device | str | int | None = None,
    ) -> "TokenSet":
        """Every position of `grid_size`, for each entry of `batch_shape`, on a `device`."""
        grid = as_grid_size("grid_size", grid_size)
        batch = as_ints("batch_shape", batch_shape, minimum=0)
        idx = torch.arange(math.prod(grid), device=device).expand(*batch, -1)
        valid = torch.ones_like(idx, dtype=torch.bool)
        return cls._trusted(idx, valid, grid, padded=False)

    @classmethod
    def cat(cls, sets: Sequence["TokenSet"]) -> "TokenSet":
        """Join `sets` on one grid along their first batch axis, padded to the longest."""
        if isinstance(sets, TokenSet) or not isinstance(sets, Sequence):
            raise TypeError(f"sets: must be a sequence of TokenSets, got {type_name(sets)}")
        if len(sets) == 0:
            raise ValueError("sets=[]: must hold at least one TokenSet")
        for number, tokens in enumerate(sets):
            if not isinstance(tokens, TokenSet):
                raise TypeError(f"sets[{number}]: must be a TokenSet, got {type_name(tokens)}")
            if tokens.idx.dim() < 2:
                raise ValueError(f"sets[{number}] {tuple(tokens.shape)}: must have a batch axis")
            if tokens.grid_size != sets[0].grid_size:
                raise ValueError(
                    f"sets[{number}] is on the grid {tokens.grid_size}, sets[0] on "
                    f"{sets[0].grid_size}: must be on one grid"
                )
            if tokens.shape[1:-1] != sets[0].shape[1:-1]:
                raise ValueError(
                    f"sets[{number}] {tuple(tokens.shape)}: must have the batch axes of sets[0] "
                    f"{tuple(sets[0].shape)} after the first"
                )
        lengths = [tokens.shape[-1] for tokens in sets]
        longest = max(lengths)
        padded = any(tokens.padded for tokens in sets) or min(lengths) < longest
        idx = torch.cat([pad(s.idx, (0, longest - s.shape[-1])) for s in sets])
        valid = torch.cat([pad(s.valid, (0, longest - s.shape[-1])) for s in sets])
        return cls._trusted(idx, valid, sets[0].grid_size, padded=padded)

    @classmethod
    def _of_length(
        cls, mask: Bool[Tensor, "*batch N"], length: int, grid_size: tuple[int, ...]
    ) -> "TokenSet":
        """`from_mask` for masks known to have `length` members each; no synchronisation."""
        idx = member_positions(mask, mask.cumsum(dim=-1), length)
        return cls._trusted(idx, torch.ones_like(idx, dtype=torch.bool), grid_size, padded=False)

    @classmethod
    def _up_to_length(
        cls, mask: Bool[Tensor, "*batch N"], length: int, grid_size: tuple[int, ...]
    ) -> "TokenSet":
        """`from_mask` for masks known to have at most `length` members; no synchronisation."""
        rank = mask.cumsum(dim=-1)
        valid = torch.arange(length, device=mask.device) < rank[..., -1:]
        return cls._trusted(member_positions(mask, rank, length), valid, grid_size, padded=True)

    @classmethod
    def _trusted(
        cls, idx: Tensor, valid: Tensor, grid_size: tuple[int, ...], *, padded: bool
    ) -> "TokenSet":
        """For sets that are right by construction: values are checked in tests only."""
        if TYPECHECK:
            return cls(idx, valid, grid_size, padded)
        return _unflatten((idx, valid), (grid_size, padded))

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
        # Padding goes to one slot past the end, so that it cannot erase a member at position 0.
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
        """The positions that are not members; padded sets need a host synchronisation."""
        mask = ~self.to_mask()
        if self.padded:
            return TokenSet.from_mask(mask, self.grid_size)
        return TokenSet._of_length(mask, mask.shape[-1] - self.shape[-1], self.grid_size)

    def coarsen(self, num_halvings: int = 1) -> "TokenSet":
        """The cells with a member after the grid's sides are halved, upwards, `num_halvings` times.

        A cell is a window of `2**num_halvings` positions along each axis, cut off by the border.
        Needs a host synchronisation.
        """
        num_halvings = as_int("num_halvings", num_halvings, minimum=0)
        most = max_halvings(self.grid_size)
        if num_halvings > most:
            raise ValueError(
                f"num_halvings={num_halvings}: the grid {self.grid_size} is a single cell after "
                f"{most}"
            )
        mask, coarse = coarsen_mask(self.to_mask(), self.grid_size, 2**num_halvings)
        return TokenSet.from_mask(mask, coarse)

    # Moving and indexing

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> "TokenSet":
        """The same set on another `device`; `non_blocking` as in `torch.Tensor.to`."""
        check_device("device", device)
        as_bool("non_blocking", non_blocking)
        idx = self.idx.to(device, non_blocking=non_blocking)
        return self._with_tensors(idx, self.valid.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "TokenSet":
        """The same set in page-locked memory; `DataLoader(pin_memory=True)` calls this."""
        return self._with_tensors(self.idx.pin_memory(), self.valid.pin_memory())

    def _with_tensors(self, idx: Tensor, valid: Tensor) -> "TokenSet":
        return _unflatten((idx, valid), (self.grid_size, self.padded))

    def __len__(self) -> int:
        """Size of the first batch axis."""
        if self.idx.dim() == 1:
            raise TypeError("this TokenSet has no batch axis, so no length; counts() has its size")
        return self.idx.shape[0]

    def __iter__(self) -> Iterator["TokenSet"]:
        if self.idx.dim() == 1:
            raise TypeError("this TokenSet has no batch axis to iterate over")
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> "TokenSet":
        """Index the batch axes by any `index` of a tensor `[*batch]`; the sets stay whole."""
        if self.idx.dim() == 1:
            raise TypeError("this TokenSet has no batch axis to index; its entries are one set")
        if isinstance(index, (str, float, bool)):
            raise TypeError(f"index={index!r}: must be an int, a slice or a vector")
        # The entries of a set are no axis to index: a slice would drop tokens in raster order.
        at = (*index, slice(None)) if isinstance(index, tuple) else (index, slice(None))
        return self._with_tensors(self.idx[at], self.valid[at])

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name}: a TokenSet is immutable; build another one")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{name}: a TokenSet is immutable")

    def __repr__(self) -> str:
        where = "" if self.device.type == "cpu" else f", device='{self.device}'"
        return (
            f"TokenSet(shape={tuple(self.shape)}, grid_size={self.grid_size}, "
            f"padded={self.padded}{where})"
        )


def _check_values(idx: Tensor, valid: Tensor, grid_size: tuple[int, ...], padded: bool) -> None:
    if idx.numel() == 0:
        return
    if not padded and not valid.all():
        raise ValueError("padded=False: promises that every entry is valid, but some are not")
    check_on_grid("idx", idx, grid_size)
    both = valid[..., 1:]
    if (both & ~valid[..., :-1]).any():
        raise ValueError("valid: valid entries must come first in every set")
    if ((idx[..., 1:] <= idx[..., :-1]) & both).any():
        raise ValueError("idx: must ascend within every set, without repeats")
    if padded and idx.masked_fill(valid, 0).any():
        raise ValueError("idx: must be 0 where not valid")


def _flatten(tokens: TokenSet) -> tuple[list[Any], Any]:
    return [tokens.idx, tokens.valid], (tokens.grid_size, tokens.padded)


def _unflatten(leaves: Any, static: Any) -> TokenSet:
    # Without checks: the leaves of a pytree may be anything.
    tokens = object.__new__(TokenSet)
    idx, valid = leaves
    grid_size, padded = static
    store_fields(tokens, idx=idx, valid=valid, grid_size=grid_size, padded=padded)
    return tokens


def _flatten_with_keys(tokens: TokenSet) -> tuple[list[tuple[Any, Any]], Any]:
    leaves, static = _flatten(tokens)
    keys = [pytree.GetAttrKey("idx"), pytree.GetAttrKey("valid")]
    return list(zip(keys, leaves, strict=True)), static


# `torch.export` needs the last three arguments; JSON turns the grid's size into a list.
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
# `torch.load(weights_only=True)`, so also `torch.export.load`, refuses classes that are not listed.
add_safe_globals([TokenSet])
