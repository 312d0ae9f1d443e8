"""Pyramid of features, pooled over windows of the grid."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepakit._checks import as_choice, as_grid_size, as_int, check_features, check_weight_dtype
from jepakit.nn._padding import zero_padding
from jepakit.nn.pyramid._fusion import TopDown, initialise
from jepakit.nn.pyramid._pools import (
    Pool,
    WindowAttention,
    WindowConvolution,
    average,
    from_field,
    is_whole,
    maximum,
    to_field,
    window_sum,
)
from jepakit.tokens import TokenSet
from jepakit.tokens._arguments import check_positions
from jepakit.tokens._grid import level_grids

__all__ = ["HierarchicalPyramid", "Level"]


class Level(NamedTuple):
    """One level of a pyramid: features and the cells that they belong to.

    Args:
        features: One feature vector for every entry of `tokens`, zeros at padding.
        tokens: The cells, `[b n]`, on the grid of the level.
    """

    features: Float[Tensor, "b n d"]
    tokens: TokenSet

    def trimmed(self) -> "Level":
        """The level without the entries that are padding in every sample.

        A context of 32 patches may have 16 cells of the next level, but has 8 with blocks that are
        whole on every level. Trimmed, a predictor does not compute the rest. Needs a host
        synchronisation, so it is not for `torch.compile`.

        Example:
            >>> import torch
            >>> from jepakit import HierarchicalPyramid, MultiBlockMask
            >>> from jepakit.masking import NestedMask
            >>> sampler = NestedMask((8, 8), MultiBlockMask((4, 4), min_context_coverage=0.5))
            >>> context = sampler(2, generator=torch.Generator().manual_seed(0)).context
            >>> pyramid = HierarchicalPyramid((8, 8), 4, num_levels=2)
            >>> coarse = pyramid(torch.randn(*context.shape, 4), context)[1]
            >>> [tuple(level.tokens.shape) for level in (coarse, coarse.trimmed())]
            [(2, 16), (2, 8)]
        """
        kept = self.tokens.valid.any(dim=0)
        idx, valid = self.tokens.idx[:, kept], self.tokens.valid[:, kept]
        padded = not bool(valid.all())
        tokens = TokenSet._trusted(idx, valid, self.tokens.grid_size, padded=padded)
        return Level(self.features[:, kept], tokens)


class HierarchicalPyramid(nn.Module):
    r"""Several levels of features from one set of features, pooled on the grid.

    Level 0 is the input. A cell $c$ of level $l$ is a window of $2^l$ positions along each axis,
    cut off by the border, so sides are halved upwards and no position is lost. With the valid
    positions $S_c$ under it, `pool="avg"` gives
    $x^l_c = \frac{1}{|S_c|} \sum_{p \in S_c} x^0_p$, one mean and not a mean of means.
    `fusion`, `projection` and `norm` follow if given, with parameters of their own on each level.
    The cells of a level depend on the token set only, never on learned values; padding enters
    nothing. No pool changes a constant field, whatever its parameters.

    In a student, put encoder and pyramid into one module and build the teacher from that: with the
    same trained projection on both sides of a loss, a constant one would bring the loss to zero.

    Args:
        grid_size: `(L,)`, `(H, W)` or `(T, H, W)` in patches, of level 0.
        dim: Width of the features, on every level.
        num_levels: Number of levels, including the finest.
        pool: `"avg"`; `"max"`, channel by channel; `"conv"`, a convolution with stride 2 from each
            level to the next, whose kernel sums to the identity and starts as the average (followed
            by `projection` it is any kernel); `"attention"`, a weighted mean over all valid
            positions of a window, with a learned query for each level.
        valid_if: A coarse cell is valid if `"any"` of the positions under it is, or if `"all"` are.
        fusion: From coarse to fine, as in a feature pyramid network with lateral maps of kernel
            size 1: upsampled levels are added to the finer ones (`"fpn-add"`) or concatenated with
            them before the lateral map (`"fpn-concat"`).
        upsample: `"nearest"` copies a coarse cell to the finer cells in it, `"bilinear"` (linear
            along each axis) interpolates with its valid neighbours.
        projection: `"linear"` for a linear map on each level.
        norm: `"layer"` for a layer norm on each level, at the end.

    Raises:
        ValueError: If an argument cannot take effect (`upsample` without `fusion`; `pool`,
            `valid_if` or `fusion` on a single level).

    Example:
        >>> import torch
        >>> from jepakit import HierarchicalPyramid, RandomMask
        >>> pyramid = HierarchicalPyramid((14, 14), 192, num_levels=3, fusion="fpn-add")
        >>> pyramid.grid_sizes
        ((14, 14), (7, 7), (4, 4))
        >>> [level.features.shape[1] for level in pyramid(torch.randn(2, 196, 192))]
        [196, 49, 16]
        >>> context = RandomMask((14, 14), target_ratio=0.8)(2).context
        >>> levels = pyramid(torch.randn(2, 39, 192), context)
        >>> [tuple(level.tokens.shape) for level in levels]
        [(2, 39), (2, 39), (2, 16)]

    Source:
        Fusion after feature pyramid networks (arXiv:1612.03144). Differences: `projection` is
        optional, with kernel size 1 where they convolve with 3; absent cells have no weight.
    """

    def __init__(
        self,
        grid_size: Sequence[int],
        dim: int,
        *,
        num_levels: int = 3,
        pool: Literal["avg", "max", "conv", "attention"] = "avg",
        valid_if: Literal["any", "all"] = "any",
        fusion: Literal["fpn-add", "fpn-concat"] | None = None,
        upsample: Literal["nearest", "bilinear"] = "nearest",
        projection: Literal["linear"] | None = None,
        norm: Literal["layer"] | None = None,
    ) -> None:
        super().__init__()
        self.grid_size = as_grid_size("grid_size", grid_size)
        self.grid_sizes = level_grids(self.grid_size, num_levels)
        self.num_levels = len(self.grid_sizes)
        self.dim = dim = as_int("dim", dim, minimum=1)
        pool = as_choice("pool", pool, ("avg", "max", "conv", "attention"))
        valid_if = as_choice("valid_if", valid_if, ("any", "all"))
        fusion = as_choice("fusion", fusion, ("fpn-add", "fpn-concat", None))
        upsample = as_choice("upsample", upsample, ("nearest", "bilinear"))
        projection = as_choice("projection", projection, ("linear", None))
        norm = as_choice("norm", norm, ("layer", None))
        if fusion is None and upsample != "nearest":
            raise ValueError(f"upsample={upsample!r}: takes effect only with a fusion")
        options = [("pool", pool, "avg"), ("valid_if", valid_if, "any"), ("fusion", fusion, None)]
        for name, value, default in options if self.num_levels == 1 else []:
            if value != default:
                raise ValueError(f"{name}={value!r}: takes effect only with num_levels above 1")
        if norm == "layer" and dim < 2:
            raise ValueError("norm='layer' with dim=1: must have at least 2 entries to normalise")
        self.pool = pool
        self.valid_if = valid_if
        self.fusion = fusion
        self.upsample = upsample
        self.projection = projection
        self.norm = norm

        # Options that are off have no submodule: without parameters `repr` is the call.
        self.pooling: Pool
        if pool == "conv":
            self.pooling = WindowConvolution(dim, len(self.grid_size), self.num_levels)
        elif pool == "attention":
            self.pooling = WindowAttention(dim, self.num_levels)
        else:
            self.pooling = average if pool == "avg" else maximum
        if fusion is not None:
            self.top_down = TopDown(dim, self.num_levels, fusion, upsample)
        if projection is not None:
            self.projections = nn.ModuleList(nn.Linear(dim, dim) for _ in self.grid_sizes)
            initialise(self.projections)
        if norm is not None:
            self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=1e-6) for _ in self.grid_sizes)

    def forward(
        self, features: Float[Tensor, "b n d"], tokens: TokenSet | None = None
    ) -> list[Level]:
        """The levels, finest first.

        From features of the whole grid, every level has all of its cells. From a set of `n` tokens,
        a level with `M` cells has `min(n, M)` entries, the most that can be valid: lengths follow
        from shapes without a host synchronisation.

        Args:
            features: The encoder's features.
            tokens: Their positions, `[batch, n]`; None for the whole grid.
        """
        self._check(features, tokens)
        if tokens is None:
            tokens = TokenSet.full(self.grid_size, features.shape[:1], device=features.device)
        features = zero_padding(features, tokens)
        levels, cells = self._pool(features, tokens)
        if self.fusion is not None:
            levels = self.top_down(levels, cells)
        if self.projection is not None:
            levels = [cast(Tensor, f(x)) for f, x in zip(self.projections, levels, strict=True)]
        if self.norm is not None:
            levels = [cast(Tensor, f(x)) for f, x in zip(self.norms, levels, strict=True)]
        return [Level(zero_padding(x, c), c) for x, c in zip(levels, cells, strict=True)]

    def _pool(self, features: Tensor, tokens: TokenSet) -> tuple[list[Tensor], list[TokenSet]]:
        """Pooled features of all levels, and the cells that they belong to."""
        levels, cells = [features], [tokens]
        if self.num_levels == 1:
            return levels, cells
        field = to_field(features, tokens)
        # Up to 2**(axes * level) cells are added up, too many for half precision.
        field = field.to(torch.promote_types(field.dtype, torch.float32))
        areas = counts = self._counts(field.new_ones(1, field.shape[1], 1))
        whole = is_whole(tokens)
        if not whole:
            counts = self._counts(tokens.to_mask().unsqueeze(-1).to(field.dtype))
        pooled = self.pooling(field, counts, self.grid_sizes)
        for level, coarse in enumerate(pooled, start=1):
            grid = self.grid_sizes[level]
            if whole:
                coarse_cells = TokenSet.full(grid, features.shape[:1], device=features.device)
            else:
                least = areas[level] if self.valid_if == "all" else 1
                valid = (counts[level] >= least).squeeze(-1)
                # Every valid cell holds a token, so there are no more of them than tokens.
                most = min(tokens.shape[-1], math.prod(grid))
                coarse_cells = TokenSet._up_to_length(valid, most, grid)
            levels.append(from_field(coarse, coarse_cells).to(features.dtype))
            cells.append(coarse_cells)
        return levels, cells

    def _counts(self, valid: Float[Tensor, "_ _ 1"]) -> list[Float[Tensor, "_ _ 1"]]:
        """For each level, the number of valid positions under every cell."""
        counts = [valid]
        for grid in self.grid_sizes[:-1]:
            counts.append(window_sum(counts[-1], grid))
        return counts

    def _check(self, features: Tensor, tokens: TokenSet | None) -> None:
        check_features(features, self.dim, "the dim that the pyramid was built with")
        check_weight_dtype("features", features, self)
        if tokens is not None:
            check_positions("tokens", tokens, features)
            if tokens.grid_size != self.grid_size:
                raise ValueError(
                    f"tokens is on the grid {tokens.grid_size}: must be on the pyramid's grid "
                    f"{self.grid_size}"
                )
        elif features.shape[1] != math.prod(self.grid_size):
            raise ValueError(
                f"features {tuple(features.shape)}: must hold all {math.prod(self.grid_size)} "
                f"positions of the grid {self.grid_size}; pass the tokens of a part of them"
            )

    def extra_repr(self) -> str:
        """The arguments."""
        names = ["num_levels", "pool", "valid_if", "fusion", "upsample", "projection", "norm"]
        options = [f"{name}={getattr(self, name)!r}" for name in names]
        return ", ".join([str(self.grid_size), str(self.dim), *options])
