"""`RandomMask`: positions drawn one by one, as in MAE."""

import math
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from jepakit._checks import check_fraction, check_grid_size, check_int
from jepakit.masking.feasibility import InfeasibleMaskError
from jepakit.masking.base import UniformSampler
from jepakit.masking.uniforms import copy_to
from jepakit.tokens import Masks, TokenSet

__all__ = ["RandomMask"]


@dataclass(frozen=True)
class RandomMask(UniformSampler[Masks]):
    r"""One target set of positions drawn without structure; the rest is context, as in MAE.

    Of $N$ positions, $k = \mathrm{round}(r N)$ for $r$ = `target_ratio`, clipped to
    $[1, N - 1]$, are the target, all subsets equally likely. Every context has $N - k$ tokens, so
    nothing is ever padded.

    Args:
        grid_size: `(L,)`, `(H, W)` or `(T, H, W)` in patches.
        target_ratio: Fraction of the positions to predict.
        context_length: `"pad"` keeps the whole rest (all have one length already); an int of at
            most $N - k$ keeps a random subset of that many.

    Raises:
        InfeasibleMaskError: If the grid has a single position, or `context_length` exceeds
            $N - k$.
        ValueError: If `target_ratio` is not in (0, 1).

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
        check_grid_size("grid_size", self.grid_size)
        check_fraction("target_ratio", self.target_ratio, open_low=True)
        if self.target_ratio == 1:
            raise ValueError("target_ratio=1: must be below 1, so that a context is left")
        if self._num_positions < 2:
            raise InfeasibleMaskError(
                f"RandomMask on the grid {self.grid_size}: one position cannot be both context and "
                "target. Change: grid_size to at least 2 positions"
            )
        if self.context_length == "pad":
            return
        if isinstance(self.context_length, str):
            raise ValueError(
                f"context_length={self.context_length!r}: must be 'pad' or an int; every context "
                "of RandomMask has one length, so there is nothing to trim"
            )
        check_int("context_length", self.context_length, minimum=1)
        rest = self._num_positions - self.num_target_tokens
        if self.context_length > rest:
            ratio = math.floor((1 - self.context_length / self._num_positions) * 1e4) / 1e4
            also = f"; target_ratio={ratio}" if ratio > 0 else ""
            raise InfeasibleMaskError(
                f"context_length={self.context_length}: exceeds the {rest} positions that "
                f"target_ratio={self.target_ratio:g} leaves of {self._num_positions}. "
                f"Change one of: context_length={rest}{also}"
            )

    @cached_property
    def _num_positions(self) -> int:
        return math.prod(self.grid_size)

    @cached_property
    def num_target_tokens(self) -> int:
        """Positions in the target set of every sample."""
        nearest = math.floor(self.target_ratio * self._num_positions + 0.5)
        return min(max(1, nearest), self._num_positions - 1)

    @property
    def min_context_tokens(self) -> int:
        """Context tokens of every sample."""
        if self.context_length == "pad":
            return self._num_positions - self.num_target_tokens
        return self.context_length

    @property
    def num_uniforms(self) -> int:
        """Random numbers that one sample takes."""
        return self._num_positions

    @property
    def per_sample(self) -> bool:
        """Whether a sample's masks depend on its own random numbers alone."""
        return True

    def _draw(self, uniforms: Float[Tensor, "b k"], device: torch.device | str | None) -> Masks:
        order = copy_to(uniforms, device).argsort(dim=1, stable=True)
        num_targets = self.num_target_tokens
        kept = None if self.context_length == "pad" else num_targets + self.context_length
        return Masks(
            self._token_set(order[:, num_targets:kept]),
            self._token_set(order[:, None, :num_targets]),
        )

    def _token_set(self, positions: Tensor) -> TokenSet:
        idx = positions.sort(dim=-1).values
        valid = torch.ones_like(idx, dtype=torch.bool)
        return TokenSet._trusted(idx, valid, self.grid_size, padded=False)
