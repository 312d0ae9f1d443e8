"""`MultiBlockMask`: I-JEPA's multi-block masks with a guaranteed context."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jepakit._checks import (
    as_bool,
    as_grid_size,
    as_int,
    as_range,
    values_readable,
)
from jepakit.masking._engine.block_grid import BlockGrid, remove_padding
from jepakit.masking._engine.block_sizes import draw_sizes
from jepakit.masking._engine.context_length import (
    first_of_order,
    nearest_order,
    num_nearest_uniforms,
)
from jepakit.masking._engine.multi_block_arguments import MultiBlockArguments
from jepakit.masking._engine.placement import (
    num_packing_uniforms,
    place_disjoint,
    place_within_budget,
)
from jepakit.masking._engine.random_numbers import random_members, random_order
from jepakit.masking._engine.region import bounding_box, draw_in_region, first_frames
from jepakit.masking._engine.tubes import repeat_in_frames
from jepakit.masking.base import InfeasibleMaskError, UniformSampler, check_samples
from jepakit.tokens import Masks, TokenSet

__all__ = ["MultiBlockMask"]


@dataclass(frozen=True)
class MultiBlockMask(MultiBlockArguments, UniformSampler[Masks]):
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
        context_frames_ratio: Fraction of the frames, from the first, that the context lies in; at
            least one frame. Only on `(T, H, W)`, of 2 frames or more.
        min_context_coverage: Fraction $c$ of the grid that the context has at least, after targets
            are removed, after trimming and batching.
        allow_target_overlap: Whether targets of one sample may share patches.
        target_size_per: Draw sizes once for a `"batch"` (as I-JEPA; targets then need no padding)
            or for each `"sample"`.
        context_length: `"fixed"`: every context has exactly $n_{\min}$ tokens, so all batches have
            one shape and nothing is padded. An int of at most $n_{\min}$: that many. `"trim"`: as
            many as the shortest of the batch, so that contexts differ with the number of ranks
            that share a batch. `"pad"`: all tokens, padded to the longest.
        context_subset: Tokens that stay where a context is shortened, never a prefix: those
            `"nearest"` to a random patch, which keeps the prediction as hard as a block does, or a
            `"random"` subset. Without effect, so refused, with `"pad"`.

    Raises:
        InfeasibleMaskError: If $n_{\min}$ + the largest target (all targets if they must not
            overlap) exceeds the largest context block, if the targets cannot be disjoint, or if an
            int `context_length` exceeds $n_{\min}$.
        ValueError: If an argument has no effect, or if an axis is too long (more than some 90,000
            positions) for `"nearest"`.

    Example:
        >>> import torch
        >>> from jepakit import MultiBlockMask
        >>> sampler = MultiBlockMask((14, 14), min_context_coverage=0.25)
        >>> masks = sampler(8, generator=torch.Generator().manual_seed(0))
        >>> masks.targets.shape[:2], bool((masks.context.counts() >= 49).all())
        (torch.Size([8, 4]), True)

        V-JEPA's long-range set, on 8 frames. The floor is low, since targets hide most of a clip;
        `"trim"` keeps more than the floor where there is more:

        >>> long = MultiBlockMask(
        ...     (8, 14, 14),
        ...     num_targets=2,
        ...     target_scale=(0.7, 0.7),
        ...     min_context_coverage=0.05,
        ...     context_length="trim",
        ... )
        >>> long(2).targets.shape[:2]
        torch.Size([2, 2])

    Source:
        Assran et al., I-JEPA (arXiv:2301.08243), section 3 and appendix A.1; Bardes et al., V-JEPA
        (arXiv:2404.08471), section 3, for time. Differences: the context floor is a promise and
        holds after batching; scale and aspect ratio are independent (the published code draws one
        number for both, aspect uniform); blocks reach the last row and column; contexts are
        shortened without a preferred place instead of cut to a raster-order prefix of the batch
        minimum.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        obstacle = self._obstacle()
        if obstacle is not None:
            raise InfeasibleMaskError(
                f"MultiBlockMask on the grid {self.grid_size}: {self._explain(obstacle)}. "
                f"{self._advice()}"
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
        context_length: Literal["fixed", "pad", "trim"] | int = "trim",
        context_subset: Literal["nearest", "random"] = "nearest",
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
            target_size_per, context_subset: As in the constructor.
            context_length: As in the constructor. The default, as in the published code, is the
                shortest context of the batch: `min_keep` is a floor, far below the usual length.

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
            context_subset=context_subset,
        )

    @cached_property
    def min_context_tokens(self) -> int:
        """Smallest number of context tokens; that of every sample with `"fixed"` or an int."""
        length = self.context_length
        return length if isinstance(length, int) else self._promised_tokens

    @cached_property
    def _columns(self) -> list[int]:
        subset = 0
        if self.context_length != "pad":
            is_random = self.context_subset == "random"
            size = self._num_positions
            subset = size if is_random else num_nearest_uniforms(self.grid_size)
        numbers = {
            "target_size": 3,  # scale, aspect ratio, scale in time
            "context_size": 1,
            "context_place": 1,
            "target_places": self.num_targets,
            "target_order": self.num_targets,
            "packing": num_packing_uniforms(self._packing),
            "context_subset": subset,
            "context_centre": 1 if subset and self.context_subset == "nearest" else 0,
        }
        return [numbers[use] for use in _Numbers._fields]

    @property
    def per_sample(self) -> bool:
        """True if a sample's masks depend on its own random numbers alone."""
        return self.target_size_per == "sample" and self.context_length != "trim"

    @property
    def _shared_columns(self) -> list[int]:
        target_size, context_size, *_ = self._columns
        return list(range(target_size + context_size)) if self.target_size_per == "batch" else []

    def _draw(self, uniforms: Float[Tensor, "b k"], valid: Bool[Tensor, "b N"] | None) -> Masks:
        numbers = _Numbers(*torch.split(uniforms, self._columns, dim=1))
        if self.target_size_per == "batch":  # the first sample's numbers are the batch's
            numbers = numbers._replace(
                target_size=numbers.target_size[:1], context_size=numbers.context_size[:1]
            )
        if valid is not None:
            return self._draw_in_region(numbers, valid)
        visible, targets = self._place_blocks(numbers)
        return Masks(self._fit_context(visible, numbers), targets)

    def _place_blocks(self, numbers: "_Numbers") -> tuple[Bool[Tensor, "b N"], TokenSet]:
        """Visible positions, before contexts are shortened, and targets."""
        grid_size = self.grid_size
        target_sizes = draw_sizes(
            grid_size,
            self.target_scale,
            self.target_aspect_ratio,
            self.temporal_scale,
            numbers.target_size,
            largest_rectangle=self._largest_rectangle,
        )
        context_sizes = self._context_sizes.draw(numbers.context_size[:, 0])
        if not self._blocks_last_all_frames:
            return self._place_sizes(grid_size, target_sizes, context_sizes, numbers)
        # Blocks are the same in all frames, so they are placed in a single one.
        frames, *frame_size = grid_size
        visible, targets = self._place_sizes(
            tuple(frame_size), target_sizes[:, 1:], context_sizes[:, 1:], numbers
        )
        return visible.repeat(1, frames), repeat_in_frames(targets, frames)

    def _place_sizes(
        self,
        grid_size: tuple[int, ...],
        target_sizes: Int[Tensor, "k axes"],
        context_sizes: Int[Tensor, "k axes"],
        numbers: "_Numbers",
    ) -> tuple[Bool[Tensor, "b N"], TokenSet]:
        """`_place_blocks` for given sizes, on the grid or on one frame of it."""
        target_blocks = BlockGrid.of_sizes(grid_size, target_sizes)
        context_blocks = BlockGrid.of_sizes(grid_size, context_sizes)
        room = None if len(grid_size) < 3 else (self._context_frames, *grid_size[1:])
        place = context_blocks.draw_places(numbers.context_place, within=room)
        context = context_blocks.padded_mask(place[:, 0])
        # Both functions remove the targets from `context`.
        if self.allow_target_overlap:
            num_frames = self._num_positions // math.prod(grid_size)
            places = place_within_budget(
                target_blocks,
                context,
                numbers.target_places,
                smallest_context=int(context_blocks.volumes.min()),
                min_context_tokens=math.ceil(self._promised_tokens / num_frames),
            )
        else:
            packing = self._packing[-len(grid_size) :]
            skipped = numbers.packing.shape[1] - num_packing_uniforms(packing)
            places = place_disjoint(
                target_blocks,
                context,
                numbers.target_places,
                numbers.packing[:, skipped:],
                packing=packing,
            )
        # Later targets had fewer places to choose from; a random order makes all alike.
        places = places.gather(1, numbers.target_order.argsort(dim=1, stable=True))
        return remove_padding(context, grid_size), target_blocks.token_sets(places)

    def _draw_in_region(self, numbers: "_Numbers", valid: Bool[Tensor, "b N"]) -> Masks:
        visible, targets = draw_in_region(
            self,
            valid,
            numbers.target_size,
            numbers.context_size,
            numbers.context_place,
            numbers.target_places,
        )
        order = numbers.target_order.argsort(dim=1, stable=True)
        targets = targets.gather(1, order[:, :, None].expand_as(targets))
        return Masks(
            self._fit_context(visible, numbers, valid),
            TokenSet._up_to_length(targets, self._largest_target, self.grid_size),
        )

    def _fit_context(
        self,
        visible: Bool[Tensor, "b N"],
        numbers: "_Numbers",
        valid: Bool[Tensor, "b N"] | None = None,
    ) -> TokenSet:
        """Contexts of one length; of one for each sample where they differ in what is `valid`."""
        grid_size, size = self.grid_size, visible.shape[1]
        readable = values_readable(visible)
        if self.context_length == "pad":
            if readable:
                return TokenSet.from_mask(visible, grid_size)
            return TokenSet._up_to_length(visible, size, grid_size)
        promised, counts = self.min_context_tokens, None
        if valid is not None:
            counts = self._min_context_tokens_of(valid.sum(dim=1)).clamp_max(promised)
        length = promised
        if self.context_length == "trim":
            shortest = visible.sum(dim=1).min()
            if counts is None:
                length = int(shortest)
            else:  # a sample that holds more than others keeps what it is promised
                counts = counts.maximum(shortest)
                # Off the CPU the longest that there can be, since the numbers are not looked at.
                length = int(counts.max()) if readable else size
        if self.context_subset == "random":
            order = random_order(numbers.context_subset, visible)
        else:
            if valid is None:
                centre = (numbers.context_centre * size).long().clamp_max(size - 1)
            else:
                centre = random_members(valid, numbers.context_centre)
            order = nearest_order(grid_size, centre, numbers.context_subset, visible, length)
        return first_of_order(order, length, grid_size, counts)

    def _untrimmed(self, uniforms: Float[Tensor, "b k"]) -> Masks:
        if self.context_length == "pad":
            return self._draw(uniforms, None)
        whole = replace(self, context_length="pad", context_subset="nearest")
        # The numbers for shortening are the last ones of a row.
        return whole._draw(uniforms[:, : whole.num_uniforms], None)

    def _check_feasible_in(self, valid: Bool[Tensor, "b N"]) -> None:
        counts = valid.sum(dim=1)
        box = bounding_box(valid, self.grid_size)
        available = first_frames(valid, box, self).sum(dim=1)
        tokens = self._min_context_tokens_of(counts)
        targets = 1 if self.allow_target_overlap else self.num_targets

        def explain(sample: int) -> str:
            frames = "" if len(self.grid_size) < 3 else " in the frames of the context"
            return (
                f"{int(available[sample])} valid positions{frames} are fewer than the "
                f"{int(tokens[sample])} context tokens of min_context_coverage="
                f"{self.min_context_coverage:g} and {targets} for "
                f"{'targets' if targets == 1 else 'disjoint targets'}"
            )

        check_samples((counts > 0) & (available >= tokens + targets), explain)


class _Numbers(NamedTuple):
    """Columns of the table of uniforms, by their use."""

    target_size: Float[Tensor, "k 3"]
    context_size: Float[Tensor, "k 1"]
    context_place: Float[Tensor, "b 1"]
    target_places: Float[Tensor, "b m"]
    target_order: Float[Tensor, "b m"]
    packing: Float[Tensor, "b _"]
    context_subset: Float[Tensor, "b _"]
    context_centre: Float[Tensor, "b _"]
