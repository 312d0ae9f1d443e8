"""`ComplementMask`: the context of any sampler, and all the rest to predict."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from jepakit.masking.mixture import check_member
from jepakit.masking.base import UniformSampler
from jepakit.tokens import Masks

__all__ = ["ComplementMask"]


@dataclass(frozen=True)
class ComplementMask(UniformSampler[Masks]):
    r"""Predict everything hidden: one target set, all that a sampler's context leaves.

    $T_b = \{0, \dots, N - 1\} \setminus C_b$. The context, and with it the sampler's promise, stays
    as it is; what trimming took from it is hidden, so it is predicted too.

    Args:
        sampler: Any of jepakit's samplers whose targets are never empty: so is the complement.

    Raises:
        TypeError: If `sampler` is not one of jepakit's, or is a mixture.

    Example:
        >>> from jepakit import MultiBlockMask
        >>> from jepakit.masking import ComplementMask
        >>> masks = ComplementMask(MultiBlockMask((14, 14), context_length=40))(2)
        >>> masks.context.shape, masks.targets.shape
        (torch.Size([2, 40]), torch.Size([2, 1, 156]))

    Source:
        As the decoders of MAE (arXiv:2111.06377) and data2vec 2.0 (arXiv:2212.07525), which predict
        all hidden patches at once; here for the contexts of any sampler.
    """

    sampler: UniformSampler[Masks]

    def __post_init__(self) -> None:
        check_member("sampler", self.sampler)

    @property
    def grid_size(self) -> tuple[int, ...]:  # type: ignore[override]
        """The grid of the sampler."""
        return self.sampler.grid_size

    @property
    def min_context_tokens(self) -> int:
        """Context tokens that every sample has at least: the sampler's."""
        return self.sampler.min_context_tokens

    @property
    def num_uniforms(self) -> int:
        """Random numbers that one sample takes."""
        return self.sampler.num_uniforms

    @property
    def per_sample(self) -> bool:
        """Whether a sample's masks depend on its own random numbers alone."""
        return self.sampler.per_sample

    def _draw(self, uniforms: Float[Tensor, "b k"], device: torch.device | str | None) -> Masks:
        context = self.sampler.from_uniforms(uniforms, device=device).context
        return Masks(context, context.complement()[:, None])

    def _untrimmed(self, uniforms: Float[Tensor, "b k"]) -> Masks:
        context = self.sampler._untrimmed(uniforms).context
        return Masks(context, context.complement()[:, None])
