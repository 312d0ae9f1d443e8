"""`CausalMask`: the past is context, the future is predicted."""

import math
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from jepakit._checks import as_choice, as_grid_size, as_int, as_ints, store_fields
from jepakit.masking.base import InfeasibleMaskError, UniformSampler, check_samples
from jepakit.tokens import Masks, TokenSet

__all__ = ["CausalMask"]


@dataclass(frozen=True)
class CausalMask(UniformSampler[Masks]):
    r"""Context is everything before a random step; targets are the steps that follow.

    Steps are the slices of the grid along `axis`: by default frames of `(T, H, W)`, tokens of
    `(L,)`, rows of `(H, W)`. With $c$ past steps, uniform over `num_context_steps`, the context is
    steps $0, \dots, c - 1$, and target $j$ is steps $c + js, \dots, c + (j + 1)s - 1$ for $s$ =
    `num_target_steps`.

    Args:
        grid_size: `(L,)`, `(H, W)` or `(T, H, W)`.
        axis: The axis along which masks are causal, counted from 0: 1 for the columns of `(H, W)`,
            such as the time of a spectrogram `(F, T)`.
        num_context_steps: Fewest and most past steps, inclusive; from 1 to all that leave room for
            the targets if None.
        num_targets: Targets that follow one another; 1 where `num_target_steps` is None.
        num_target_steps: Steps of each target; the whole future if None.
        context_size_per: Draw the number of past steps once for a `"batch"` (nothing is padded
            then) or for each `"sample"`. Both give the same masks where there is one number to
            draw, as with `num_context_steps=(4, 4)`.

    Raises:
        InfeasibleMaskError: If the steps are too few for the past and the targets.

    Example:
        >>> from jepakit.masking import CausalMask
        >>> masks = CausalMask((8, 4, 4), num_context_steps=(4, 4), num_target_steps=2)(3)
        >>> masks.context.shape, masks.targets.shape
        (torch.Size([3, 64]), torch.Size([3, 1, 32]))

        The first 30 of 40 times of a spectrogram with 16 bands, and the rest:

        >>> masks = CausalMask((16, 40), axis=1, num_context_steps=(30, 30))(3)
        >>> masks.context.shape, masks.targets.shape
        (torch.Size([3, 480]), torch.Size([3, 1, 160]))

    Source:
        The setting of van den Oord et al., CPC (arXiv:1807.03748), where every future step is a
        target. Differences: a target may have several steps, and steps may be frames of patches.
    """

    grid_size: tuple[int, ...]
    _: KW_ONLY
    axis: int = 0
    num_context_steps: tuple[int, int] | None = None
    num_targets: int = 1
    num_target_steps: int | None = None
    context_size_per: Literal["batch", "sample"] = "batch"

    def __post_init__(self) -> None:
        store_fields(
            self,
            grid_size=(grid_size := as_grid_size("grid_size", self.grid_size)),
            axis=as_int("axis", self.axis, minimum=0, maximum=len(grid_size) - 1),
            num_targets=as_int("num_targets", self.num_targets, minimum=1),
            context_size_per=as_choice(
                "context_size_per", self.context_size_per, ("batch", "sample")
            ),
        )
        if self.num_target_steps is not None:
            steps = as_int("num_target_steps", self.num_target_steps, minimum=1)
            store_fields(self, num_target_steps=steps)
        elif self.num_targets > 1:
            raise ValueError(
                f"num_targets={self.num_targets}: must be 1 where num_target_steps is None, since "
                "one target is the whole future"
            )
        if self.num_context_steps is not None:
            ends = as_ints("num_context_steps", self.num_context_steps, minimum=1, length=2)
            store_fields(self, num_context_steps=ends)
            if ends[0] > ends[1]:
                raise ValueError(f"num_context_steps={ends}: the fewest must not exceed the most")
        self._check_feasible()

    def _check_feasible(self) -> None:
        longest_past = max(1, self._past_steps[1])
        if longest_past + self._future_steps <= self._num_steps:
            return
        raise InfeasibleMaskError(
            f"CausalMask on the grid {self.grid_size}: {longest_past} past "
            f"step(s) and {self._future_steps} step(s) for {self.num_targets} target(s) exceed the "
            f"grid's {self._num_steps}. Change grid_size to at least "
            f"{longest_past + self._future_steps} steps, or lower one of the numbers of steps"
        )

    @property
    def _num_steps(self) -> int:
        return self.grid_size[self.axis]

    @property
    def _future_steps(self) -> int:
        """Steps that all targets take, at least."""
        return self.num_targets * (self.num_target_steps or 1)

    @property
    def _past_steps(self) -> tuple[int, int]:
        """Fewest and most past steps."""
        return self.num_context_steps or (1, self._num_steps - self._future_steps)

    @property
    def _step_tokens(self) -> int:
        return math.prod(self.grid_size) // self._num_steps

    @cached_property
    def min_context_tokens(self) -> int:
        """Smallest number of context tokens that a sample can have."""
        return self._past_steps[0] * self._step_tokens

    @property
    def _columns(self) -> list[int]:
        return [1]

    @property
    def per_sample(self) -> bool:
        """True if a sample's masks depend on its own random numbers alone."""
        return self.context_size_per == "sample"

    @property
    def _shared_columns(self) -> list[int]:
        return [] if self.per_sample else [0]

    def _draw(self, uniforms: Float[Tensor, "b k"], valid: Bool[Tensor, "b N"] | None) -> Masks:
        step = torch.arange(1, self._num_steps + 1, device=uniforms.device)
        # Steps are numbered from 1; those without data have the number of the one before.
        number = step[None] if valid is None else self._has_data(valid).cumsum(dim=1)
        num_steps = number[:, -1]
        fewest, most = self._past_steps
        most_here = (num_steps - self._future_steps).clamp_max(most)
        rows = uniforms if self.per_sample else uniforms[:1].expand_as(uniforms)
        past = fewest + (rows[:, 0].double() * (most_here - fewest + 1)).long()
        context = number <= past[:, None]

        target = torch.arange(self.num_targets, device=uniforms.device)
        length = self.num_target_steps or self._num_steps  # None: all that follow
        before = past[:, None, None] + target[:, None] * length
        targets = (number[:, None] > before) & (number[:, None] <= before + length)
        longest = self.num_target_steps or self._num_steps - fewest
        inside = None if valid is None else valid[:, None]
        return Masks(
            self._token_sets(context, most, valid), self._token_sets(targets, longest, inside)
        )

    def _has_data(self, valid: Bool[Tensor, "b N"]) -> Bool[Tensor, "b steps"]:
        along_axis = valid.view(-1, *self.grid_size).movedim(self.axis + 1, 1)
        return along_axis.flatten(1).view(len(valid), self._num_steps, -1).any(dim=2)

    def _token_sets(
        self, steps: Bool[Tensor, "b *m steps"], longest: int, valid: Bool[Tensor, "b ... N"] | None
    ) -> TokenSet:
        """The (valid) positions of whole steps, `longest` of them at most."""
        others = len(self.grid_size) - 1 - self.axis  # axes after that of the steps
        batch = steps.shape[:-1]
        along_axis = steps.view(*batch, *[1] * self.axis, self._num_steps, *[1] * others)
        mask = along_axis.expand(*batch, *self.grid_size).flatten(len(batch))
        if valid is None:
            return TokenSet.from_mask(mask, self.grid_size)
        return TokenSet._up_to_length(mask & valid, longest * self._step_tokens, self.grid_size)

    def _check_feasible_in(self, valid: Bool[Tensor, "b N"]) -> None:
        num_steps = self._has_data(valid).sum(dim=1)
        fewest, future = self._past_steps[0], self._future_steps
        check_samples(
            num_steps >= fewest + future,
            lambda sample: (
                f"{int(num_steps[sample])} step(s) with valid positions are fewer than the "
                f"{fewest} past and {future} future steps that masks need"
            ),
        )
