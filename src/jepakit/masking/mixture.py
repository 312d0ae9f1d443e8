"""`MultiContextMask`: several samplers for the same images, each with a context of its own."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor

from jepakit.masking.base import UniformSampler
from jepakit.tokens import Masks

__all__ = ["MultiContextMask"]


@dataclass(frozen=True)
class MultiContextMask(UniformSampler[list[Masks]]):
    """Several samplers at once: a list of `Masks`, one for each member.

    Several contexts for an image are several `Masks`: run student and predictor on each and add
    the losses; the teacher runs once. Members draw independently and keep their own promises.

    Args:
        samplers: Any of jepakit's samplers, on one grid.

    Raises:
        TypeError: If a member is not one of jepakit's samplers, or is a mixture itself.
        ValueError: If there is no member, or the grids differ.

    Example:
        >>> from jepakit import MultiBlockMask
        >>> from jepakit.masking import MultiContextMask
        >>> short = MultiBlockMask(
        ...     (8, 14, 14), num_targets=8, target_scale=(0.15, 0.15), min_context_coverage=0.05
        ... )
        >>> long = MultiBlockMask(
        ...     (8, 14, 14), num_targets=2, target_scale=(0.7, 0.7), min_context_coverage=0.05
        ... )
        >>> [masks.targets.shape[1] for masks in MultiContextMask((short, long))(2)]
        [8, 2]

    Source:
        Bardes et al., V-JEPA (arXiv:2404.08471), section 3.2: short- and long-range masks.
    """

    samplers: tuple[UniformSampler[Masks], ...]

    def __post_init__(self) -> None:
        if not isinstance(self.samplers, tuple):
            raise TypeError(f"samplers={self.samplers!r}: must be a tuple of samplers")
        if not self.samplers:
            raise ValueError("samplers=(): must hold at least one sampler")
        for number, sampler in enumerate(self.samplers):
            check_member(f"samplers[{number}]", sampler)
        grids = {sampler.grid_size for sampler in self.samplers}
        if len(grids) > 1:
            found = ", ".join(str(sampler.grid_size) for sampler in self.samplers)
            raise ValueError(f"samplers on the grids {found}: must be on one grid")

    @property
    def grid_size(self) -> tuple[int, ...]:  # type: ignore[override]
        """The grid of all members."""
        return self.samplers[0].grid_size

    @property
    def min_context_tokens(self) -> int:
        """Context tokens that every sample has at least with any member; each has its own."""
        return min(sampler.min_context_tokens for sampler in self.samplers)

    @cached_property
    def num_uniforms(self) -> int:
        """Random numbers that one sample takes."""
        return sum(sampler.num_uniforms for sampler in self.samplers)

    @property
    def per_sample(self) -> bool:
        """Whether a sample's masks depend on its own random numbers alone."""
        return all(sampler.per_sample for sampler in self.samplers)

    def _draw(
        self, uniforms: Float[Tensor, "b k"], device: torch.device | str | None
    ) -> list[Masks]:
        return [
            sampler.from_uniforms(part, device=device) for sampler, part in self._parts(uniforms)
        ]

    def _untrimmed(self, uniforms: Float[Tensor, "b k"]) -> list[Masks]:
        return [sampler._untrimmed(part) for sampler, part in self._parts(uniforms)]

    def _parts(
        self, uniforms: Float[Tensor, "b k"]
    ) -> Iterator[tuple[UniformSampler[Masks], Float[Tensor, "b _"]]]:
        """Members, each with random numbers of its own."""
        ends = list(accumulate(sampler.num_uniforms for sampler in self.samplers))
        return zip(self.samplers, uniforms.tensor_split(ends[:-1], dim=1), strict=True)


def check_member(name: str, value: object) -> None:
    """Raise unless `value` is one of jepakit's samplers with one context for an image."""
    if not isinstance(value, UniformSampler):
        raise TypeError(
            f"{name}={value!r}: must be one of jepakit's samplers, got {type(value).__name__}"
        )
    if isinstance(value, MultiContextMask):
        raise TypeError(
            f"{name}=MultiContextMask(...): must give one context for each image; mix outside instead, "
            "as MultiContextMask((Outer(a), Outer(b)))"
        )
