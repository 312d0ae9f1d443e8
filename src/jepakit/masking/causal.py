"""`CausalMask`: the past is context, the future is predicted."""

import math
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jepakit._checks import check_choice, check_grid_size, check_int, check_pair
from jepakit.masking.feasibility import InfeasibleMaskError
from jepakit.masking.base import UniformSampler
from jepakit.masking.uniforms import copy_to
from jepakit.tokens import Masks, TokenSet

__all__ = ["CausalMask"]


@dataclass(frozen=True)
class CausalMask(UniformSampler[Masks]):
    r"""Context is all that came before a random step, targets are steps that follow.

    Steps are the slices of the grid's first axis: frames of `(T, H, W)`, tokens of `(L,)`, rows of
    `(H, W)`. With $c$ past steps, uniform over `num_context_steps`, the context is steps
    $0, \dots, c - 1$, and target $j$ is steps $c + js, \dots, c + (j + 1)s - 1$ for $s$ =
    `num_target_steps`. Every context has at least the low end's steps, whole.

    Args:
        grid_size: `(L,)`, `(H, W)` or `(T, H, W)`; time is the first axis.
        num_context_steps: Fewest and most past steps, inclusive; from 1 to all that leave room for
            the targets if None.
        num_targets: Targets that follow one another.
        num_target_steps: Steps of each target; the whole future if None.
        context_size_per: Draw the number of past steps once for a `"batch"` (nothing is padded then) or
            for each `"sample"`. Where there is one number of steps to draw, as with
            `num_context_steps=(4, 4)`, both give the same masks.

    Raises:
        InfeasibleMaskError: If the steps are too few for the past and the targets.
        ValueError: If an argument is out of its range, or `num_targets` is not 1 where
            `num_target_steps` is None.

    Example:
        >>> from jepakit.masking import CausalMask
        >>> masks = CausalMask((8, 4, 4), num_context_steps=(4, 4), num_target_steps=2)(3)
        >>> masks.context.shape, masks.targets.shape
        (torch.Size([3, 64]), torch.Size([3, 1, 32]))

    Source:
        jepakit's own; the setting of latent prediction of future frames, as in van den Oord et al.,
        CPC (arXiv:1807.03748), where every future step is a target of its own.
    """

    grid_size: tuple[int, ...]
    _: KW_ONLY
    num_context_steps: tuple[int, int] | None = None
    num_targets: int = 1
    num_target_steps: int | None = None
    context_size_per: Literal["batch", "sample"] = "batch"

    def __post_init__(self) -> None:
        check_grid_size("grid_size", self.grid_size)
        check_int("num_targets", self.num_targets, minimum=1)
        check_choice("context_size_per", self.context_size_per, ("batch", "sample"))
        if self.num_target_steps is not None:
            check_int("num_target_steps", self.num_target_steps, minimum=1)
        elif self.num_targets > 1:
            raise ValueError(
                f"num_targets={self.num_targets}: must be 1 where num_target_steps is None, since "
                "one target is the whole future"
            )
        steps, most = self.grid_size[0], self.grid_size[0] - self._future
        if most < 1:
            raise InfeasibleMaskError(
                f"CausalMask on the grid {self.grid_size}: 1 past step and {self._future} of "
                f"{self.num_targets} targets exceed the {steps} steps. {self._advice(1)}"
            )
        if self.num_context_steps is None:
            return
        fewest, last = check_pair("num_context_steps", self.num_context_steps, "(fewest, most)")
        for end in (fewest, last):
            check_int("num_context_steps", end, minimum=1)
        if fewest > last:
            raise ValueError(
                f"num_context_steps={self.num_context_steps}: the fewest must not exceed the most"
            )
        if last > most:
            raise InfeasibleMaskError(
                f"CausalMask on the grid {self.grid_size}: {last} past steps and {self._future} of "
                f"{self.num_targets} targets exceed the {steps} steps. "
                f"{self._advice(last)}; num_context_steps={(min(fewest, most), most)}"
            )

    def _advice(self, past: int) -> str:
        room = self.grid_size[0] - past
        changes = [f"grid_size to at least {past + self._future} steps"]
        if self.num_target_steps is not None:
            if room >= self.num_targets:
                changes.append(f"num_target_steps={room // self.num_targets}")
            if room >= self.num_target_steps:
                changes.append(f"num_targets={room // self.num_target_steps}")
        return "Change one of: " + "; ".join(changes)

    @property
    def _future(self) -> int:
        """Steps that the targets take at least."""
        return self.num_targets * (self.num_target_steps or 1)

    @property
    def _past(self) -> tuple[int, int]:
        return self.num_context_steps or (1, self.grid_size[0] - self._future)

    @cached_property
    def min_context_tokens(self) -> int:
        """Context tokens that every sample has at least."""
        return self._past[0] * math.prod(self.grid_size[1:])

    @property
    def num_uniforms(self) -> int:
        """Random numbers that one sample takes."""
        return 1

    @property
    def per_sample(self) -> bool:
        """Whether a sample's masks depend on its own random numbers alone."""
        return self.context_size_per == "sample"

    def _draw(self, uniforms: Float[Tensor, "b k"], device: torch.device | str | None) -> Masks:
        step, (fewest, most) = math.prod(self.grid_size[1:]), self._past
        u = (
            uniforms[:, 0]
            if self.context_size_per == "sample"
            else uniforms[:1, 0].expand(len(uniforms))
        )
        past = fewest + (u.double() * (most - fewest + 1)).long()
        if self.num_target_steps is None:
            future = self.grid_size[0] - past
        else:
            future = torch.full_like(past, self.num_target_steps)
        begin = past[:, None] + torch.arange(self.num_targets, device="cpu") * future[:, None]
        return Masks(
            self._stretch(torch.zeros_like(past), past * step, device),
            self._stretch(begin * step, (future * step)[:, None].expand_as(begin), device),
        )

    def _stretch(
        self,
        begin: Int[Tensor, "*b"],
        length: Int[Tensor, "*b"],
        device: torch.device | str | None,
    ) -> TokenSet:
        """Tokens from `begin` on; drawn on the CPU, so that their number is known there."""
        entry = torch.arange(int(length.max()), device="cpu")
        valid = entry < length[..., None]
        idx = (begin[..., None] + entry) * valid
        padded = not bool(valid.all())
        return TokenSet._trusted(
            copy_to(idx, device), copy_to(valid, device), self.grid_size, padded=padded
        )
