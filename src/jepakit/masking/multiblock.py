"""`MultiBlockMask`: I-JEPA's multi-block masks with a guaranteed context."""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from itertools import accumulate
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from jepakit._checks import (
    check_bool,
    check_choice,
    check_fraction,
    check_grid_size,
    check_int,
    check_range,
    type_name,
)
from jepakit.masking.blocks import draw_sizes
from jepakit.masking.context import check_context_length, fit_context
from jepakit.masking.feasibility import MultiBlockSpec
from jepakit.masking.placement import num_packing_draws, place_disjoint, place_within_budget
from jepakit.masking.places import Blocks, to_mask
from jepakit.masking.base import UniformSampler
from jepakit.masking.uniforms import copy_to
from jepakit.tokens import Masks

__all__ = ["MultiBlockMask"]

# Columns of the table of uniforms for sizes: three of the targets', one of the context block's.
_SIZES = 4


@dataclass(frozen=True)
class MultiBlockMask(UniformSampler[Masks]):
    r"""Several rectangular targets and the rest of one large block as context, as in I-JEPA.

    With $N = HW$ patches, $\mathrm{need} = \max(1, \lceil c N \rceil)$ for
    $c$ = `min_context_coverage`, and a context block $B$: every sample of every batch has
    $C = B \setminus \bigcup_j T_j$ with $|C| \ge \mathrm{need}$, and every $T_j$ is a whole,
    non-empty rectangle. This is met by construction, with no retry: a target is drawn among the
    positions whose new cells in $B$ still fit the budget $|B| - \mathrm{need}$.

    On `(T, H, W)` blocks are boxes, as in V-JEPA; on `(L,)` they are stretches.

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
            raised to `min_context_tokens` + the largest target where it lies below (plus all targets if they
            must not overlap), since no smaller block could keep the promise.
        max_temporal_keep: Fraction of the frames, from the first, that the context lies in; at
            least one frame. Only on `(T, H, W)`, of 2 frames or more.
        min_context_coverage: Fraction $c$ of the grid that the context has at least, after targets
            are removed, after trimming and batching.
        allow_target_overlap: Whether targets of one sample may share patches. A single target
            keeps the promise anyway.
        target_size_per: Draw sizes once for a `"batch"` (as I-JEPA; targets then need no padding) or for
            each `"sample"`.
        context_length: `"pad"` contexts to the longest of the batch; `"trim"` each to the shortest
            of the batch, or to an int of at most `min_context_tokens`, by a random subset (never a prefix). With
            an int the promise is that number, and nothing is ever read back from the device.

    Raises:
        InfeasibleMaskError: At construction, if `min_context_tokens` + what the largest target can take exceeds
            the largest context block (all targets if they must not overlap), if the targets
            cannot be disjoint, or if an int `context_length` exceeds `min_context_tokens`.
        ValueError: If an argument is out of its range or has no effect on this grid; `TypeError`
            if it is of another kind.

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
        (arXiv:2404.08471), section 3, for time. Differences: the
        context floor is a promise and holds after batching; scale and aspect ratio are independent
        (the published code draws one number for both, aspect uniform); blocks reach the last row
        and column; contexts are padded or trimmed at random instead of cut to a raster-order prefix
        of the batch minimum.
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
        check_grid_size("grid_size", self.grid_size)
        check_int("num_targets", self.num_targets, minimum=1)
        check_range("target_scale", self.target_scale, high=1.0)
        check_range("target_aspect_ratio", self.target_aspect_ratio)
        check_range("temporal_scale", self.temporal_scale, high=1.0)
        check_range("context_scale", self.context_scale, high=1.0)
        check_fraction("max_temporal_keep", self.max_temporal_keep, open_low=True)
        check_fraction("min_context_coverage", self.min_context_coverage)
        check_bool("allow_target_overlap", self.allow_target_overlap)
        check_choice("target_size_per", self.target_size_per, ("batch", "sample"))
        check_context_length(self.context_length)
        idle: tuple[str, ...] = ("target_aspect_ratio",) if len(self.grid_size) == 1 else ()
        if len(self.grid_size) < 3 or self.grid_size[0] == 1:
            idle += ("temporal_scale", "max_temporal_keep")
        for name in idle:
            if getattr(self, name) != getattr(type(self), name):
                raise ValueError(
                    f"{name}={getattr(self, name)}: has no effect on the grid {self.grid_size}, so "
                    "must be left out"
                )
        self._spec.check()

    @classmethod
    def from_ijepa_config(
        cls,
        grid_size: tuple[int, int],
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
        """A sampler from the key names of I-JEPA's published configuration files.

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
            target_size_per: As in the constructor.
            context_length: As in the constructor.

        Raises:
            TypeError: If an argument is of another kind, such as a range that is no pair.
            ValueError: If `allow_overlap` is True or `nenc` above 1.

        Example:
            >>> MultiBlockMask.from_ijepa_config((14, 14), min_keep=49).min_context_coverage
            0.25
        """
        check_grid_size("grid_size", grid_size, ndims=(2,))
        check_int("nenc", nenc, minimum=1)
        check_int("min_keep", min_keep, minimum=1)
        check_bool("allow_overlap", allow_overlap)
        if allow_overlap:
            raise ValueError(
                "allow_overlap=True: must be False; it lets the context contain its targets, which "
                "jepakit never does (targets may always overlap each other)"
            )
        if nenc > 1:
            raise ValueError(
                f"nenc={nenc}: must be 1; call the sampler once for each context instead"
            )
        size = math.prod(grid_size)
        if min_keep > size:
            raise ValueError(f"min_keep={min_keep}: must be at most the grid's {size} patches")
        return cls(
            grid_size,
            num_targets=npred,
            target_scale=_as_pair("pred_mask_scale", pred_mask_scale),
            target_aspect_ratio=_as_pair("aspect_ratio", aspect_ratio),
            context_scale=_as_pair("enc_mask_scale", enc_mask_scale),
            min_context_coverage=min_keep / size,
            target_size_per=target_size_per,
            context_length=context_length,
        )

    @cached_property
    def _spec(self) -> MultiBlockSpec:
        return MultiBlockSpec(
            self.grid_size,
            self.num_targets,
            self.target_scale,
            self.target_aspect_ratio,
            self.temporal_scale,
            self.context_scale,
            self.max_temporal_keep,
            self.min_context_coverage,
            self.allow_target_overlap,
            self.context_length,
        )

    @cached_property
    def min_context_tokens(self) -> int:
        """Context tokens that every sample has at least; exactly so many with an int length."""
        return (
            self.context_length
            if isinstance(self.context_length, int)
            else self._spec.min_context_tokens
        )

    @cached_property
    def num_uniforms(self) -> int:
        """Random numbers that one sample takes."""
        trim = 0 if self.context_length == "pad" else self._spec.size
        return _SIZES + 1 + 2 * self.num_targets + num_packing_draws(self._spec.packing) + trim

    @property
    def per_sample(self) -> bool:
        """Whether a sample's masks depend on its own random numbers alone."""
        return self.target_size_per == "sample" and self.context_length != "trim"

    # Sampling

    def _draw(self, uniforms: Float[Tensor, "b k"], device: torch.device | str | None) -> Masks:
        grid_size, spec = self.grid_size, self._spec
        rows = uniforms[:1] if self.target_size_per == "batch" else uniforms
        sizes = draw_sizes(
            grid_size,
            self.target_scale,
            self.target_aspect_ratio,
            self.temporal_scale,
            rows[:, :3],
            largest_plane=spec.largest_plane,
        )
        blocks = Blocks(grid_size, sizes, device=device)
        room = grid_size if len(grid_size) < 3 else (spec.context_frames, *grid_size[1:])
        context_block = Blocks(grid_size, spec.context_sizes.draw(rows[:, 3]), device=device)

        widths = [_SIZES, 1, self.num_targets, self.num_targets, num_packing_draws(spec.packing)]
        _, u_context, u_target, u_order, u_packing, u_trim = copy_to(uniforms, device).tensor_split(
            list(accumulate(widths)), dim=1
        )
        context = context_block.field(context_block.anywhere(u_context[:, 0], within=room))
        if self.allow_target_overlap:
            places = place_within_budget(
                blocks, context, u_target, min_context_tokens=spec.min_context_tokens
            )
        else:
            places = place_disjoint(blocks, context, u_target, u_packing, packing=spec.packing)
        # Later targets had less choice; in random order none of the m places knows which it was.
        places = places.gather(1, u_order.argsort(dim=1, stable=True))

        visible = to_mask(context, grid_size)
        return Masks(
            fit_context(visible, grid_size, self.context_length, u_trim), blocks.token_sets(places)
        )


def _as_pair(name: str, value: Sequence[float]) -> tuple[float, float]:
    # Configuration files hold lists, the constructor takes tuples.
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{name}={value!r}: must be a pair (low, high), got {type_name(value)}")
    if len(value) != 2:
        raise TypeError(f"{name}={value!r}: must be a pair (low, high), got {len(value)} entries")
    return value[0], value[1]
