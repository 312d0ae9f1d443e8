"""`RandomMask`: positions drawn one by one, as in MAE."""

import math
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from jepakit._checks import as_fraction, as_grid_size, store_fields
from jepakit.masking._engine.context_length import as_context_length, first_of_order
from jepakit.masking._engine.random_numbers import random_order
from jepakit.masking.base import (
    InfeasibleMaskError,
    UniformSampler,
    check_two_valid,
    positions_of_ratio,
    positions_of_ratio_in,
)
from jepakit.tokens import Masks

__all__ = ["RandomMask"]


@dataclass(frozen=True)
class RandomMask(UniformSampler[Masks]):
    r"""One target set of positions drawn without structure; the rest is context, as in MAE.

    Of $N$ positions, $k = \mathrm{round}(r N)$ for $r$ = `target_ratio`, clipped to
    $[1, N - 1]$, are the target, all subsets equally likely. Every context has $N - k$ tokens, so
    nothing is padded.

    Args:
        grid_size: `(L,)`, `(H, W)` or `(T, H, W)` in patches.
        target_ratio: Fraction of the positions to predict, in (0, 1).
        context_length: `"pad"` keeps all that is left (every sample has one length already); an int
            of at most $N - k$ keeps a random subset of that many.

    Raises:
        InfeasibleMaskError: If the grid has a single position, or `context_length` exceeds
            $N - k$.

    Example:
        >>> from jepakit import RandomMask
        >>> masks = RandomMask((14, 14), target_ratio=0.75)(2)
        >>> masks.context.shape, masks.targets.shape
        (torch.Size([2, 49]), torch.Size([2, 1, 147]))

    Source:
        He et al., MAE (arXiv:2111.06377), section 3. Difference: indices ascend, where MAE keeps
        shuffled order and an inverse permutation.
    """

    grid_size: tuple[int, ...]
    _: KW_ONLY
    target_ratio: float = 0.75
    context_length: Literal["pad"] | int = "pad"

    def __post_init__(self) -> None:
        length: object = self.context_length
        if isinstance(length, str) and length == "trim":
            raise ValueError(
                "context_length='trim': must be 'pad' or an int; contexts have one length already"
            )
        store_fields(
            self,
            grid_size=as_grid_size("grid_size", self.grid_size),
            target_ratio=as_fraction(
                "target_ratio", self.target_ratio, open_low=True, open_high=True
            ),
            context_length=as_context_length(length, ("pad",)),
        )
        size = math.prod(self.grid_size)
        left = size - self.num_target_tokens
        if isinstance(self.context_length, int) and self.context_length > left:
            ratio = math.floor((1 - self.context_length / size) * 1e4) / 1e4
            also = f"; target_ratio={ratio}" if ratio > 0 else ""
            raise InfeasibleMaskError(
                f"context_length={self.context_length}: exceeds the {left} positions that "
                f"target_ratio={self.target_ratio:g} leaves of {size}. "
                f"Change one of: context_length={left}{also}"
            )

    @property
    def _columns(self) -> list[int]:
        return [math.prod(self.grid_size)]

    @cached_property
    def num_target_tokens(self) -> int:
        """Positions in the target set of every sample."""
        return positions_of_ratio(self.target_ratio, self.grid_size)

    @property
    def min_context_tokens(self) -> int:
        """Context tokens of every sample."""
        if self.context_length == "pad":
            return math.prod(self.grid_size) - self.num_target_tokens
        return self.context_length

    def _draw(self, uniforms: Float[Tensor, "b k"], valid: Bool[Tensor, "b N"] | None) -> Masks:
        num_targets, length = self.num_target_tokens, self.min_context_tokens
        if valid is None:
            targets, rest = random_order(uniforms).tensor_split([num_targets], dim=1)
            context = first_of_order(rest, length, self.grid_size)
            return Masks(context, first_of_order(targets, num_targets, self.grid_size)[:, None])
        order, num_valid = random_order(uniforms, valid), valid.sum(dim=1)
        hidden = positions_of_ratio_in(self.target_ratio, num_valid)
        # The order from the first position that is no target on.
        entry = torch.arange(length, device=valid.device)
        rest = order.gather(1, (hidden[:, None] + entry).clamp_max(order.shape[1] - 1))
        visible = (num_valid - hidden).clamp_max(length)
        return Masks(
            first_of_order(rest, length, self.grid_size, visible),
            first_of_order(order, num_targets, self.grid_size, hidden)[:, None],
        )

    def _untrimmed(self, uniforms: Float[Tensor, "b k"]) -> Masks:
        return replace(self, context_length="pad")._draw(uniforms, None)

    def _check_feasible_in(self, valid: Bool[Tensor, "b N"]) -> None:
        check_two_valid(valid)
