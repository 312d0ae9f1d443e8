"""`TubeMask`: the same space over all time, for video."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from jepakit._checks import check_int
from jepakit.masking.mixture import check_member
from jepakit.masking.base import UniformSampler
from jepakit.tokens import Masks, TokenSet

__all__ = ["TubeMask"]


@dataclass(frozen=True)
class TubeMask(UniformSampler[Masks]):
    """The masks of a sampler of images, the same in every frame, as in VideoMAE.

    The promises of `sampler` hold for every frame: with its floor of `min_context_tokens` context patches a video
    has at least `num_frames * min_context_tokens`.

    Args:
        num_frames: Frames (tubelets) of the grid `(T, H, W)`.
        sampler: Any of jepakit's samplers on `(H, W)`.

    Raises:
        TypeError: If `sampler` is not one of jepakit's.
        ValueError: If its grid is not two-dimensional.

    Example:
        >>> from jepakit import RandomMask
        >>> from jepakit.masking import TubeMask
        >>> masks = TubeMask(8, RandomMask((14, 14), target_ratio=0.9))(2)
        >>> masks.context.grid_size, masks.context.shape
        ((8, 14, 14), torch.Size([2, 160]))

    Source:
        Tong et al., VideoMAE (arXiv:2203.12602), section 3.2. Difference: any masks of images can
        be made tubes, not random ones alone.
    """

    num_frames: int
    sampler: UniformSampler[Masks]

    def __post_init__(self) -> None:
        check_int("num_frames", self.num_frames, minimum=1)
        check_member("sampler", self.sampler)
        if len(self.sampler.grid_size) != 2:
            raise ValueError(
                f"sampler on the grid {self.sampler.grid_size}: must be of images, (H, W)"
            )

    @property
    def grid_size(self) -> tuple[int, int, int]:  # type: ignore[override]
        """`(T, H, W)`."""
        height, width = self.sampler.grid_size
        return self.num_frames, height, width

    @property
    def min_context_tokens(self) -> int:
        """Context tokens that every sample has at least: the sampler's, in every frame."""
        return self.num_frames * self.sampler.min_context_tokens

    @property
    def num_uniforms(self) -> int:
        """Random numbers that one sample takes."""
        return self.sampler.num_uniforms

    @property
    def per_sample(self) -> bool:
        """Whether a sample's masks depend on its own random numbers alone."""
        return self.sampler.per_sample

    def _draw(self, uniforms: Float[Tensor, "b k"], device: torch.device | str | None) -> Masks:
        return self._tubes(self.sampler.from_uniforms(uniforms, device=device))

    def _untrimmed(self, uniforms: Float[Tensor, "b k"]) -> Masks:
        return self._tubes(self.sampler._untrimmed(uniforms))

    def _tubes(self, masks: Masks) -> Masks:
        return Masks(self._through_time(masks.context), self._through_time(masks.targets))

    def _through_time(self, tokens: TokenSet) -> TokenSet:
        *batch, length = tokens.shape
        _, height, width = self.grid_size
        total = self.num_frames * length
        frame = torch.arange(self.num_frames, device=tokens.device)[:, None]
        count = tokens.counts()[..., None, None]
        # Of every frame its valid entries come first, so padding would stand between the frames.
        slot = frame * count + torch.arange(length, device=tokens.device)
        slot = slot.masked_fill(~tokens.valid[..., None, :], total).flatten(-2)
        idx = (frame * (height * width) + tokens.idx[..., None, :]).flatten(-2)
        idx = idx.new_zeros(*batch, total + 1).scatter_(-1, slot, idx)[..., :-1].contiguous()
        valid = torch.arange(total, device=tokens.device) < self.num_frames * count.squeeze(-1)
        return TokenSet._trusted(idx, valid, self.grid_size, padded=tokens.padded)
