"""Protocol, base classes and error of the mask samplers."""

import math
from abc import ABC, abstractmethod
from dataclasses import is_dataclass, replace
from functools import cached_property
from numbers import Integral
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from jepakit._checks import as_int, check_device, check_floating, type_name, values_readable
from jepakit.masking._engine.block_sizes import round_half_up
from jepakit.masking._engine.random_numbers import Device, draw_uniforms
from jepakit.tokens import Masks

__all__ = ["InfeasibleMaskError", "MaskSampler"]

M_co = TypeVar("M_co", covariant=True)


class InfeasibleMaskError(ValueError):
    """Error for masks that cannot exist; its text has the arithmetic and what to change.

    Raised when a sampler is built, never while it draws.

    Example:
        >>> from jepakit import InfeasibleMaskError, MultiBlockMask
        >>> try:
        ...     MultiBlockMask((14, 14), min_context_coverage=0.85)
        ... except InfeasibleMaskError as error:
        ...     print(str(error).replace(". ", ".\\n"))
        MultiBlockMask on the grid (14, 14): min_context_coverage=0.85 needs 167 context tokens, \
and 167 + 42 (largest target block, 7 x 6) = 209 exceeds 196 (largest context block).
        Change one of: target_scale=(0.1262, 0.1262); min_context_coverage=0.7857
    """


@runtime_checkable
class MaskSampler(Protocol[M_co]):
    """Any callable with this signature that draws masks.

    It returns `Masks`, or a list of them where an image has several contexts.
    """

    def __call__(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        device: Device = None,
    ) -> M_co:
        """Draw masks for `batch_size` samples on a `device`, as a function of the `generator`."""
        ...


class UniformSampler(ABC, Generic[M_co]):
    """Base class of jepakit's samplers: masks are a function of a table of uniforms.

    The table has one row of `num_uniforms` numbers in [0, 1) for each sample. A subclass turns it
    into masks in `_draw`.
    """

    grid_size: tuple[int, ...]

    @property
    def _columns(self) -> list[int]:
        """Columns of the table, by their use in `_draw`."""
        return []

    @cached_property
    def num_uniforms(self) -> int:
        """Random numbers that one sample takes."""
        return sum(self._columns)

    @property
    def min_context_tokens(self) -> int:
        """Smallest number of context tokens that a sample can have."""
        return 1

    @property
    def per_sample(self) -> bool:
        """True if a sample's masks depend on its own random numbers alone."""
        return True

    @abstractmethod
    def _draw(self, uniforms: Float[Tensor, "b k"], device: Device) -> M_co:
        """Masks from a table on the CPU."""

    def __call__(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        device: Device = None,
    ) -> M_co:
        """Draw masks for a batch.

        Args:
            batch_size: Number of samples.
            generator: A CPU generator; torch's global one if None.
            device: Device on which the masks are computed; they do not depend on it.
        """
        if device is not None:
            check_device("device", device)
        return self._draw(draw_uniforms(batch_size, self.num_uniforms, generator=generator), device)

    def from_uniforms(
        self, uniforms: Float[Tensor, "b k"], *, device: torch.device | str | int | None = None
    ) -> M_co:
        """Compute masks on a `device` from `uniforms`: for each sample `num_uniforms` in [0, 1)."""
        check_floating("uniforms", uniforms)
        if device is not None:
            check_device("device", device)
        if uniforms.dim() != 2 or uniforms.shape[1] != self.num_uniforms or len(uniforms) == 0:
            raise ValueError(
                f"uniforms {tuple(uniforms.shape)}: must be [batch, {self.num_uniforms}], "
                "with a batch of at least 1"
            )
        # For the number 1 a causal mask would draw the step after the last, a target of nothing.
        if values_readable(uniforms) and not ((uniforms >= 0) & (uniforms < 1)).all():
            raise ValueError("uniforms: must lie in [0, 1)")
        return self._draw(uniforms, device)

    def _untrimmed(self, uniforms: Float[Tensor, "b k"]) -> M_co:
        """The same draw before contexts get a common length; `audit_masks` compares the two.

        To be overridden where contexts are cut by anything but `context_length`.
        """
        if not is_dataclass(self) or getattr(self, "context_length", "pad") == "pad":
            return self.from_uniforms(uniforms)
        padding: Any = replace(self, context_length="pad")
        # The numbers for trimming are the last ones of a row.
        masks: M_co = padding.from_uniforms(uniforms[:, : padding.num_uniforms])
        return masks


class MaskTransform(UniformSampler[Masks]):
    """Base class of samplers that change the masks of one other sampler."""

    sampler: UniformSampler[Masks]

    @property
    def _columns(self) -> list[int]:
        return [self.sampler.num_uniforms]

    @property
    def per_sample(self) -> bool:
        """As in `sampler`."""
        return self.sampler.per_sample

    @abstractmethod
    def _transform(self, masks: Masks) -> Masks:
        """The masks of this sampler from those of `sampler`."""

    def _draw(self, uniforms: Float[Tensor, "b k"], device: Device) -> Masks:
        return self._transform(self.sampler._draw(uniforms, device))

    def _untrimmed(self, uniforms: Float[Tensor, "b k"]) -> Masks:
        return self._transform(self.sampler._untrimmed(uniforms))


def check_sampler(name: str, value: object) -> None:
    """Raise unless `value` is one of jepakit's samplers and gives one context for an image."""
    if not isinstance(value, UniformSampler):
        raise TypeError(
            f"{name}={value!r}: must be one of jepakit's samplers, got {type_name(value)}"
        )
    if hasattr(value, "samplers"):
        raise TypeError(
            f"{name}=MultiContextMask(...): must give one context for each image; combine the "
            "results instead, as MultiContextMask((Outer(a), Outer(b)))"
        )


def positions_of_ratio(ratio: float, grid_size: tuple[int, ...]) -> int:
    """Positions that a ratio of the grid rounds to; at least 1, and at least 1 is left over."""
    size = math.prod(grid_size)
    if size < 2:
        raise InfeasibleMaskError(
            f"grid_size={grid_size}: one position cannot be both context and target. "
            "Change: grid_size to at least 2 positions"
        )
    return min(max(1, round_half_up(ratio * size)), size - 1)


def promised_tokens(sampler: object, num_members: int) -> list[int]:
    """Context tokens that a sampler promises for each of the `Masks` that one call returns.

    A sampler of the user's own may have `min_context_tokens`, else it is 1, and an int
    `context_length`, which counts where it is less. jepakit's samplers have both in
    `min_context_tokens`.
    """

    members = getattr(sampler, "samplers", ())
    if not isinstance(members, tuple) or len(members) != num_members:
        members = (sampler,) * num_members
    return [_promised_tokens_of_one(member) for member in members]


def _promised_tokens_of_one(sampler: object) -> int:
    promise = getattr(sampler, "min_context_tokens", 1)
    tokens = as_int("sampler.min_context_tokens", promise, minimum=0)
    length = getattr(sampler, "context_length", None)
    own = not isinstance(sampler, UniformSampler)
    return min(tokens, int(length)) if own and isinstance(length, Integral) else tokens
