"""What a mask sampler is: a pure function of random numbers, one row of them for each sample."""

from abc import ABC, abstractmethod
from dataclasses import is_dataclass, replace
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from jepakit.masking.uniforms import draw_uniforms

__all__ = ["MaskSampler"]

M_co = TypeVar("M_co", covariant=True)


@runtime_checkable
class MaskSampler(Protocol[M_co]):
    """What draws masks: any callable with this signature.

    It returns `Masks`, or a list of them where an image has several contexts.
    """

    def __call__(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> M_co:
        """Masks for a batch.

        Args:
            batch_size: Number of samples.
            generator: A CPU generator; the masks are a function of its state.
            device: Where the masks go.
        """
        ...


class UniformSampler(ABC, Generic[M_co]):
    """A sampler whose masks are a function of a table of uniforms; all of jepakit's are.

    A subclass says how many numbers a sample takes and turns a table of them into masks.
    """

    grid_size: tuple[int, ...]

    @property
    @abstractmethod
    def num_uniforms(self) -> int:
        """Random numbers that one sample takes."""

    @property
    def min_context_tokens(self) -> int:
        """Context tokens that every sample has at least."""
        return 1

    @property
    @abstractmethod
    def per_sample(self) -> bool:
        """Whether a sample's masks depend on its own random numbers alone."""

    @abstractmethod
    def _draw(self, uniforms: Float[Tensor, "b k"], device: torch.device | str | None) -> M_co:
        """Masks from a table that has been checked; it lies on the CPU."""

    def __call__(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> M_co:
        """Masks for a batch.

        Args:
            batch_size: Number of samples.
            generator: A CPU generator; torch's global one if None.
            device: Where the masks are computed; they do not depend on it.
        """
        return self._draw(draw_uniforms(batch_size, self.num_uniforms, generator=generator), device)

    def from_uniforms(
        self, uniforms: Float[Tensor, "b k"], *, device: torch.device | str | None = None
    ) -> M_co:
        """Masks as a pure function of `num_uniforms` numbers in [0, 1) for each sample.

        Args:
            uniforms: On the CPU; one row for each sample.
            device: Where the masks are computed.
        """
        if uniforms.dim() != 2 or uniforms.shape[1] != self.num_uniforms or len(uniforms) == 0:
            raise ValueError(
                f"uniforms {tuple(uniforms.shape)}: must be [batch, {self.num_uniforms}], "
                "with a batch of at least 1"
            )
        return self._draw(uniforms, device)

    def _untrimmed(self, uniforms: Float[Tensor, "b k"]) -> M_co:
        """The masks as they are before contexts get a common length; `audit_masks` compares with them.

        A sampler whose contexts are cut by something else than `context_length` overrides it.
        """
        if not is_dataclass(self) or getattr(self, "context_length", "pad") == "pad":
            return self.from_uniforms(uniforms)
        twin: Any = replace(self, context_length="pad")
        masks: M_co = twin.from_uniforms(uniforms[:, : twin.num_uniforms])
        return masks


def promised_tokens(sampler: object, num_members: int) -> list[int]:
    """Context tokens that each `Masks` of a sample has at least, by the sampler's own account."""
    inner = getattr(sampler, "samplers", ())
    if isinstance(inner, tuple) and len(inner) == num_members:
        return [_promised(member) for member in inner]
    return [_promised(sampler)] * num_members


def _promised(sampler: object) -> int:
    promised = getattr(sampler, "min_context_tokens", 1)
    length = getattr(sampler, "context_length", None)
    if not isinstance(promised, int):
        return 1
    # An int length is the promise then; jepakit's samplers count that into their `min_context_tokens`.
    foreign = not isinstance(sampler, UniformSampler)
    return min(promised, length) if foreign and isinstance(length, int) else promised
