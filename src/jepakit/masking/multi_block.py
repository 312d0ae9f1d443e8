"""`MultiBlockMask`: I-JEPA's multi-block masks with a guaranteed context."""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from jepakit._checks import (
    as_bool,
    as_choice,
    as_fraction,
    as_grid_size,
    as_int,
    as_range,
    store_fields,
)
from jepakit.masking._engine.block_grid import BlockGrid, remove_padding
from jepakit.masking._engine.block_sizes import draw_sizes
from jepakit.masking._engine.context_length import as_context_length, fit_context
from jepakit.masking._engine.feasibility import MultiBlockSpec
from jepakit.masking._engine.placement import (
    num_packing_uniforms,
    place_disjoint,
    place_within_budget,
)
from jepakit.masking._engine.random_numbers import Device, copy_to
from jepakit.masking.base import InfeasibleMaskError, UniformSampler
from jepakit.tokens import Masks

__all__ = ["MultiBlockMask"]


@dataclass(frozen=True)
class MultiBlockMask(UniformSampler[Masks]):
    r"""Rectangular targets, and as context the rest of one large block, as in I-JEPA.

    With $N = HW$ patches, $n_{\min} = \max(1, \lceil c N \rceil)$ for
    $c$ = `min_context_coverage`, and a context block $B$: every sample of every batch has
    $C = B \setminus \bigcup_j T_j$ with $|C| \ge n_{\min}$, and every $T_j$ is a whole,
    non-empty rectangle. This holds by construction, with no retry: a target is drawn among the
    positions whose new cells in $B$ still fit the budget $|B| - n_{\min}$.

    On `(T, H, W)` blocks are boxes, as in V-JEPA; on `(L,)` they are intervals.

    Args:
        grid_size: `(H, W)`, `(T, H, W)` or `(L,)` in patches (tubelets, tokens).
        num_targets: Target blocks for each sample.
        target_scale: Range of a target's area as a fraction of the grid (of a frame, where there
            is time), uniform.
        target_aspect_ratio: Range of a target's height / width, log-uniform and independent of the
            scale. Blocks are rounded to whole patches and clipped to the grid. All targets of one
            sample have one size. Not on `(L,)`.
        temporal_scale: Range of a target's duration as a fraction of the frames, uniform. Only on
            `(T, H, W)`, of 2 frames or more.
        context_scale: Range of the context block's area before targets are removed, as a fraction
            of the grid (of a frame), uniform; the block has the grid's own aspect. The low end is
            raised to $n_{\min}$ + the largest target where it lies below (all targets if they
            must not overlap), since no smaller block could keep the promise.
        max_temporal_keep: Fraction of the frames, from the first, that the context lies in; at
            least one frame. Only on `(T, H, W)`, of 2 frames or more.
        min_context_coverage: Fraction $c$ of the grid that the context has at least, after targets
            are removed, after trimming and batching.
        allow_target_overlap: Whether targets of one sample may share patches.
        target_size_per: Draw sizes once for a `"batch"` (as I-JEPA; targets then need no padding)
            or for each `"sample"`.
        context_length: `"pad"` contexts to the longest of the batch; `"trim"` each to the shortest
            of the batch, or to an int of at most $n_{\min}$, by a random subset (never a prefix).
            With an int the promise is that number, and there is no host synchronisation.

    Raises:
        InfeasibleMaskError: If $n_{\min}$ + the largest target (all targets if they must not
            overlap) exceeds the largest context block, if the targets cannot be disjoint, or if an
            int `context_length` exceeds $n_{\min}$.

    Example:
        >>> import torch
        >>> from jepakit import MultiBlockMask
        >>> sampler = MultiBlockMask((14, 14), min_context_coverage=0.25)
        >>> masks = sampler(8, generator=torch.Generator().manual_seed(0))
        >>> masks.targets.shape[:2], bool((masks.context.counts() >= 49).all())
        (torch.Size([8, 4]), True)

        V-JEPA's long-range set, on 8 frames:

        >>> long = MultiBlockMask(
        ...     (8, 14, 14), num_targets=2, target_scale=(0.7, 0.7), min_context_coverage=0.05
        ... )
        >>> long(2).targets.shape[:2]
        torch.Size([2, 2])

    Source:
        Assran et al., I-JEPA (arXiv:2301.08243), section 3 and appendix A.1; Bardes et al., V-JEPA
        (arXiv:2404.08471), section 3, for time. Differences: the context floor is a promise and
        holds after batching; scale and aspect ratio are independent (the published code draws one
        number for both, aspect uniform); blocks reach the last row and column; contexts are padded
        or trimmed at random instead of cut to a raster-order prefix of the batch minimum.
    """

    grid_size: tuple[int, ...]
    _: KW_ONLY
    num_targets: int = 4
    target_scale: tuple[float, float] = (0.15, 0.2)
    target_aspect_ratio: tuple[float, float] = (0.75, 1.5)
    temporal_scale: tuple[float, float] = (1.0, 1.0)
    context_scale: tuple[float, float] = (0.85, 1.0)
    max_temporal_keep: float = 1.0
    min_context_coverage: float = 0.25
    allow_target_overlap: bool = True
    target_size_per: Literal["batch", "sample"] = "batch"
    context_length: Literal["pad", "trim"] | int = "pad"

    def __post_init__(self) -> None:
        store_fields(
            self,
            grid_size=as_grid_size("grid_size", self.grid_size),
            num_targets=as_int("num_targets", self.num_targets, minimum=1),
            target_scale=as_range("target_scale", self.target_scale, high=1.0),
            target_aspect_ratio=as_range("target_aspect_ratio", self.target_aspect_ratio),
            temporal_scale=as_range("temporal_scale", self.temporal_scale, high=1.0),
            context_scale=as_range("context_scale", self.context_scale, high=1.0),
            max_temporal_keep=as_fraction(
                "max_temporal_keep", self.max_temporal_keep, open_low=True
            ),
            min_context_coverage=as_fraction("min_context_coverage", self.min_context_coverage),
            allow_target_overlap=as_bool("allow_target_overlap", self.allow_target_overlap),
            target_size_per=as_choice("target_size_per", self.target_size_per, ("batch", "sample")),
            context_length=as_context_length(self.context_length),
        )
        without_effect = ["target_aspect_ratio"] if len(self.grid_size) == 1 else []
        if len(self.grid_size) < 3 or self.grid_size[0] == 1:
            without_effect += ["temporal_scale", "max_temporal_keep"]
        for name in without_effect:
            if getattr(self, name) != getattr(type(self), name):  # the default
                raise ValueError(
                    f"{name}={getattr(self, name)}: has no effect on the grid {self.grid_size}, so "
                    "must be left out"
                )
        obstacle = self._spec.obstacle()
        if obstacle is not None:
            raise InfeasibleMaskError(
                f"MultiBlockMask on the grid {self.grid_size}: {self._spec.explain(obstacle)}. "
                f"{self._spec.advice()}"
            )

    @classmethod
    def from_ijepa_config(
        cls,
        grid_size: Sequence[int],
        *,
        enc_mask_scale: Sequence[float] = (0.85, 1.0),
        pred_mask_scale: Sequence[float] = (0.15, 0.2),
        aspect_ratio: Sequence[float] = (0.75, 1.5),
        nenc: int = 1,
        npred: int = 4,
        min_keep: int = 10,
        allow_overlap: bool = False,
        target_size_per: Literal["batch", "sample"] = "batch",
        context_length: Literal["pad", "trim"] | int = "pad",
    ) -> "MultiBlockMask":
        """Build a sampler from the key names of I-JEPA's published configuration files.

        Args:
            grid_size: `(H, W)` in patches.
            enc_mask_scale: Becomes `context_scale`.
            pred_mask_scale: Becomes `target_scale`.
            aspect_ratio: Becomes `target_aspect_ratio`.
            nenc: Contexts for each image; only 1.
            npred: Becomes `num_targets`.
            min_keep: Patches that a context keeps; becomes a floor of `min_keep` / N that holds
                after batching (the published code checks it before).
            allow_overlap: Of context with targets; only False. Targets may overlap each other.
            target_size_per, context_length: As in the constructor.

        Example:
            >>> MultiBlockMask.from_ijepa_config((14, 14), min_keep=49).min_context_coverage
            0.25
        """
        grid = as_grid_size("grid_size", grid_size, num_axes=(2,))
        if as_bool("allow_overlap", allow_overlap):
            raise ValueError(
                "allow_overlap=True: must be False; the context never contains its targets"
            )
        if as_int("nenc", nenc, minimum=1) > 1:
            raise ValueError(f"nenc={nenc}: must be 1; call the sampler once for each context")
        size = math.prod(grid)
        if as_int("min_keep", min_keep, minimum=1) > size:
            raise ValueError(f"min_keep={min_keep}: must be at most the grid's {size} patches")
        return cls(
            grid,
            num_targets=as_int("npred", npred, minimum=1),
            target_scale=as_range("pred_mask_scale", pred_mask_scale, high=1.0),
            target_aspect_ratio=as_range("aspect_ratio", aspect_ratio),
            context_scale=as_range("enc_mask_scale", enc_mask_scale, high=1.0),
            min_context_coverage=min_keep / size,
            target_size_per=target_size_per,
            context_length=context_length,
        )

    @cached_property
    def _spec(self) -> MultiBlockSpec:
        return MultiBlockSpec.from_sampler(self)

    @cached_property
    def min_context_tokens(self) -> int:
        """Smallest number of context tokens of a sample; that of every one with an int length."""
        length = self.context_length
        return length if isinstance(length, int) else self._spec.min_context_tokens

    @cached_property
    def _columns(self) -> list[int]:
        return [
            3,  # scale, aspect ratio and duration of the targets
            1,  # scale of the context block
            1,  # place of the context block
            self.num_targets,  # places of the targets
            self.num_targets,  # order of the targets
            num_packing_uniforms(self._spec.packing),
            0 if self.context_length == "pad" else self._spec.num_positions,  # trimming
        ]

    @property
    def per_sample(self) -> bool:
        """True if a sample's masks depend on its own random numbers alone."""
        return self.target_size_per == "sample" and self.context_length != "trim"

    def _draw(self, uniforms: Float[Tensor, "b k"], device: Device) -> Masks:
        grid_size, spec = self.grid_size, self._spec
        # Sizes come from numbers on the CPU, so that the shapes of all sets are known there.
        rows = uniforms[:1] if self.target_size_per == "batch" else uniforms
        u_target_size, u_context_size, *_ = torch.split(rows, self._columns, dim=1)
        target_sizes = draw_sizes(
            grid_size,
            self.target_scale,
            self.target_aspect_ratio,
            self.temporal_scale,
            u_target_size,
            largest_rectangle=spec.largest_rectangle,
        )
        target_blocks = BlockGrid(grid_size, target_sizes, device=device)
        context_sizes = spec.context_sizes.draw(u_context_size[:, 0])
        context_blocks = BlockGrid(grid_size, context_sizes, device=device)

        _, _, u_context, u_targets, u_order, u_packing, u_trim = torch.split(
            copy_to(uniforms, device), self._columns, dim=1
        )
        room = grid_size if len(grid_size) < 3 else (spec.context_frames, *grid_size[1:])
        place = context_blocks.draw_place(u_context[:, 0], within=room)
        context = context_blocks.padded_mask(place)
        # Both functions remove the targets from `context`.
        if self.allow_target_overlap:
            places = place_within_budget(
                target_blocks, context, u_targets, min_context_tokens=spec.min_context_tokens
            )
        else:
            places = place_disjoint(
                target_blocks, context, u_targets, u_packing, packing=spec.packing
            )
        # Later targets had fewer places to choose from; a random order makes all alike.
        places = places.gather(1, u_order.argsort(dim=1, stable=True))

        visible = remove_padding(context, grid_size)
        fitted = fit_context(visible, grid_size, self.context_length, u_trim)
        return Masks(fitted, target_blocks.token_sets(places))
