"""Samplers made of others: `ComplementMask`, `UnionMask`, `TubeMask` and `MultiContextMask`."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from jepakit._checks import as_int, store_fields, type_name
from jepakit.masking._engine.tubes import repeat_in_frames
from jepakit.masking.base import MaskTransform, UniformSampler, check_sampler, check_samples
from jepakit.tokens import Masks, TokenSet

__all__ = ["ComplementMask", "MultiContextMask", "TubeMask", "UnionMask"]


@dataclass(frozen=True)
class _OneTarget(MaskTransform):
    """The context of a sampler, with one target in place of its targets."""

    sampler: UniformSampler[Masks]

    def __post_init__(self) -> None:
        check_sampler("sampler", self.sampler)

    @property
    def grid_size(self) -> tuple[int, ...]:  # type: ignore[override]
        """Grid of the sampler."""
        return self.sampler.grid_size

    @property
    def min_context_tokens(self) -> int:
        """As in `sampler`."""
        return self.sampler.min_context_tokens

    def _with_target(self, context: TokenSet, hidden: Bool[Tensor, "b N"]) -> Masks:
        """Masks with one target, padded to the longest; off the CPU to the longest possible."""
        if hidden.device.type == "cpu":
            targets = TokenSet.from_mask(hidden, self.grid_size)
        else:  # at least one position is context
            targets = TokenSet._up_to_length(hidden, hidden.shape[1] - 1, self.grid_size)
        return Masks(context, targets[:, None])


@dataclass(frozen=True)
class ComplementMask(_OneTarget):
    r"""The context of any sampler, with all hidden positions as one target.

    $T_b = \{0, \dots, N - 1\} \setminus C_b$. The context and the sampler's promise for it stay as
    they are; positions that trimming took from the context are predicted too. With `valid` on the
    CPU targets are padded to the longest of the batch.

    Args:
        sampler: One of jepakit's samplers.

    Raises:
        TypeError: If `sampler` is not one of jepakit's, or is a `MultiContextMask`.

    Example:
        >>> from jepakit import MultiBlockMask
        >>> from jepakit.masking import ComplementMask
        >>> masks = ComplementMask(MultiBlockMask((14, 14), context_length=40))(2)
        >>> masks.context.shape, masks.targets.shape
        (torch.Size([2, 40]), torch.Size([2, 1, 156]))

    Source:
        The decoders of MAE (arXiv:2111.06377) and data2vec 2.0 (arXiv:2212.07525) predict all
        hidden patches at once. Difference: for the contexts of any sampler.
    """

    def _transform(self, masks: Masks, valid: Bool[Tensor, "b N"] | None) -> Masks:
        if valid is None:
            return Masks(masks.context, masks.context.complement()[:, None])
        return self._with_target(masks.context, valid & ~masks.context.to_mask())


@dataclass(frozen=True)
class UnionMask(_OneTarget):
    r"""The masks of any sampler, with the union of its targets as one target.

    $T_b = \bigcup_j T_{bj}$, so a position that several targets share is predicted once, and the
    target may have any form. The context and the sampler's promise for it stay as they are. Targets
    are padded to the longest of the batch.

    Args:
        sampler: One of jepakit's samplers.

    Raises:
        TypeError: If `sampler` is not one of jepakit's, or is a `MultiContextMask`.

    Example:
        >>> from jepakit import MultiBlockMask
        >>> from jepakit.masking import UnionMask
        >>> blocks = MultiBlockMask((14, 14), num_targets=4)
        >>> blocks(2).targets.shape[:2], UnionMask(blocks)(2).targets.shape[:2]
        (torch.Size([2, 4]), torch.Size([2, 1]))

    Source:
        Bardes et al., V-JEPA (arXiv:2404.08471), section 3.2. Difference: padded, where the
        published code cuts all targets to the shortest of the batch.
    """

    def _transform(self, masks: Masks, valid: Bool[Tensor, "b N"] | None) -> Masks:
        return self._with_target(masks.context, masks.targets.to_mask().any(dim=1))


@dataclass(frozen=True)
class TubeMask(MaskTransform):
    """The masks of an image sampler repeated in every frame, as in VideoMAE.

    The promises of `sampler` hold in every frame.

    Args:
        num_frames: Frames (tubelets) of the grid `(T, H, W)`.
        sampler: One of jepakit's samplers on `(H, W)`.

    Raises:
        TypeError: If `sampler` is not one of jepakit's, or is a `MultiContextMask`.

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
        store_fields(self, num_frames=as_int("num_frames", self.num_frames, minimum=1))
        check_sampler("sampler", self.sampler)
        if len(self.sampler.grid_size) != 2:
            raise ValueError(f"sampler on the grid {self.sampler.grid_size}: must be on (H, W)")

    @property
    def grid_size(self) -> tuple[int, int, int]:  # type: ignore[override]
        """`(T, H, W)`."""
        height, width = self.sampler.grid_size
        return self.num_frames, height, width

    @property
    def min_context_tokens(self) -> int:
        """Smallest number of context tokens that a sample can have."""
        return self.num_frames * self.sampler.min_context_tokens

    def _transform(self, masks: Masks, valid: Bool[Tensor, "b N"] | None) -> Masks:
        context = repeat_in_frames(masks.context, self.num_frames)
        targets = repeat_in_frames(masks.targets, self.num_frames)
        if valid is None:
            return Masks(context, targets)
        return Masks(_inside(context, valid), _inside(targets, valid[:, None]))

    def _inner_valid(self, valid: Bool[Tensor, "b N"]) -> Bool[Tensor, "b M"]:
        return valid.view(len(valid), self.num_frames, -1).any(dim=1)

    def _check_feasible_in(self, valid: Bool[Tensor, "b N"]) -> None:
        frames = valid.view(len(valid), self.num_frames, -1)
        same = (frames == self._inner_valid(valid)[:, None]).all(dim=2)
        check_samples(
            (same | ~frames.any(dim=2)).all(dim=1),
            lambda _: "must be the same in all frames that hold data, since a tube is",
        )
        super()._check_feasible_in(valid)


@dataclass(frozen=True)
class MultiContextMask(UniformSampler[list[Masks]]):
    """Several contexts for every image: a list of `Masks`, one for each member.

    Run student and predictor on each of the `Masks` and add the losses; the teacher runs once.
    Members draw independently and keep their own promises.

    Args:
        samplers: Some of jepakit's samplers, on one grid.

    Raises:
        TypeError: If a member is not one of jepakit's samplers, or is a `MultiContextMask` itself.

    Example:
        >>> from jepakit import MultiBlockMask, RandomMask
        >>> from jepakit.masking import MultiContextMask
        >>> sampler = MultiContextMask([MultiBlockMask((14, 14)), RandomMask((14, 14))])
        >>> [masks.targets.shape[1] for masks in sampler(2)]
        [4, 1]

    Source:
        Bardes et al., V-JEPA (arXiv:2404.08471), section 3.2: short- and long-range masks, which
        `vjepa_masks` builds.
    """

    samplers: Sequence[UniformSampler[Masks]]  # stored as a tuple

    def __post_init__(self) -> None:
        if not isinstance(self.samplers, Sequence) or isinstance(self.samplers, str):
            kind = type_name(self.samplers)
            raise TypeError(
                f"samplers={self.samplers!r}: must be a sequence of samplers, got {kind}"
            )
        store_fields(self, samplers=tuple(self.samplers))
        if not self.samplers:
            raise ValueError("samplers=(): must hold at least one sampler")
        for number, sampler in enumerate(self.samplers):
            check_sampler(f"samplers[{number}]", sampler)
        grids = [sampler.grid_size for sampler in self.samplers]
        if len(set(grids)) > 1:
            raise ValueError(f"samplers on the grids {grids}: must be on one grid")

    @property
    def grid_size(self) -> tuple[int, ...]:  # type: ignore[override]
        """Grid of all members."""
        return self.samplers[0].grid_size

    @property
    def min_context_tokens(self) -> int:
        """Smallest number of context tokens with any member; each has its own."""
        return min(sampler.min_context_tokens for sampler in self.samplers)

    @property
    def _columns(self) -> list[int]:
        return [sampler.num_uniforms for sampler in self.samplers]

    @property
    def per_sample(self) -> bool:
        """True if a sample's masks depend on its own random numbers alone."""
        return all(sampler.per_sample for sampler in self.samplers)

    @property
    def _shared_columns(self) -> list[int]:
        starts = accumulate(self._columns, initial=0)
        return [
            start + column
            for start, sampler in zip(starts, self.samplers, strict=False)
            for column in sampler._shared_columns
        ]

    def _draw(
        self, uniforms: Float[Tensor, "b k"], valid: Bool[Tensor, "b N"] | None
    ) -> list[Masks]:
        parts = torch.split(uniforms, self._columns, dim=1)
        return [
            sampler._draw(part, valid) for sampler, part in zip(self.samplers, parts, strict=True)
        ]

    def _check_feasible_in(self, valid: Bool[Tensor, "b N"]) -> None:
        for sampler in self.samplers:
            sampler._check_feasible_in(valid)

    def _untrimmed(self, uniforms: Float[Tensor, "b k"]) -> list[Masks]:
        parts = torch.split(uniforms, self._columns, dim=1)
        return [
            sampler._untrimmed(part) for sampler, part in zip(self.samplers, parts, strict=True)
        ]


def _inside(tokens: TokenSet, valid: Bool[Tensor, "b ... N"]) -> TokenSet:
    """The valid positions of a set, padded to its length."""
    return TokenSet._up_to_length(tokens.to_mask() & valid, tokens.shape[-1], tokens.grid_size)
