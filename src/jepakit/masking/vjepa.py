"""`vjepa_masks`: V-JEPA's short- and long-range masks."""

from collections.abc import Sequence
from typing import Literal

from jepakit._checks import as_grid_size, as_numbers
from jepakit.masking.composite import MultiContextMask, UnionMask
from jepakit.masking.multi_block import MultiBlockMask

__all__ = ["vjepa_masks"]

# Blocks of a set, and the fraction of a frame that each of them covers.
_SHORT_RANGE, _LONG_RANGE = (8, 0.15), (2, 0.7)


def vjepa_masks(
    grid_size: Sequence[int],
    *,
    min_context_coverage: Sequence[float] = (0.15, 0.05),
    target_size_per: Literal["batch", "sample"] = "batch",
    context_length: Literal["fixed", "pad", "trim"] = "fixed",
    context_subset: Literal["nearest", "random"] = "nearest",
) -> MultiContextMask:
    r"""Build the sampler of V-JEPA's two sets: 8 short-range blocks, and 2 long-range blocks.

    It returns two `Masks` for every clip, the short-range ones first. Blocks cover 15 % and 70 % of
    a frame, with aspect ratios from 0.75 to 1.5, in all frames. The union of a set's blocks is its
    one target, and what they leave is its context, of a length of its own. On 8x14x14 targets are
    63 % and 81 % of a clip on average, and contexts 15 % and 5 %.

    Train one predictor on both, and average the two losses; V-JEPA's has a mask token for each set.

    Args:
        grid_size: `(T, H, W)` in tubelets.
        min_context_coverage: Fraction of the grid that a context has at least, for the short-range
            and the long-range set; 70 % of a frame twice leave little.
        target_size_per: As in `MultiBlockMask`.
        context_length: As in `MultiBlockMask`, for each set. The default costs no more than the
            published recipe. `"trim"` is nearest to its contexts: 23 % and 8 % of a clip in batches
            of 24.
        context_subset: As in `MultiBlockMask`.

    Raises:
        InfeasibleMaskError: If a block can cover a frame, as on 2x2 and 3x3 patches, or leaves less
            than `min_context_coverage`.

    Example:
        >>> from jepakit.masking import vjepa_masks
        >>> short, long = vjepa_masks((8, 14, 14))(4)
        >>> short.context.shape, long.context.shape
        (torch.Size([4, 236]), torch.Size([4, 79]))
        >>> short.targets.shape[:2], long.targets.shape[:2]
        (torch.Size([4, 1]), torch.Size([4, 1]))

    Source:
        Bardes et al., V-JEPA (arXiv:2404.08471), section 3.2, and the configuration published with
        it: `num_blocks` 8 and 2, `spatial_scale` 0.15 and 0.7, `temporal_scale` 1,
        `max_temporal_keep` 1. Differences: the minimum of context tokens is a promise (the
        published code draws again until one token is left), for which a block may have to lie where
        it leaves enough; the aspect ratio is log-uniform, not uniform, and the area is not rounded
        down to whole patches; contexts are cut to the promised minimum, not to the shortest of the
        batch, and without a preferred place (the published code keeps the first ones, so that late
        frames are cut), and targets are padded to the longest, not cut to the shortest; random
        numbers come from one generator, where the published code seeds block sizes by a counter of
        batches and draws places from the global generator.
    """
    grid = as_grid_size("grid_size", grid_size, num_axes=(3,))
    coverages = as_numbers("min_context_coverage", min_context_coverage)
    if len(coverages) != 2:
        raise ValueError(
            f"min_context_coverage={coverages}: must be two fractions, one for the short-range and "
            "one for the long-range set"
        )
    return MultiContextMask(
        tuple(
            UnionMask(
                MultiBlockMask(
                    grid,
                    num_targets=num_blocks,
                    target_scale=(scale, scale),
                    context_scale=(1.0, 1.0),
                    min_context_coverage=coverage,
                    target_size_per=target_size_per,
                    context_length=context_length,
                    context_subset=context_subset,
                )
            )
            for (num_blocks, scale), coverage in zip(
                (_SHORT_RANGE, _LONG_RANGE), coverages, strict=True
            )
        )
    )
