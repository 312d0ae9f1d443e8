"""`HierarchicalPyramid`: tokens pooled over windows of the grid, level by level."""

from typing import Literal, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from jepakit._checks import check_choice, check_floating, check_grid_size, check_int
from jepakit.nn.pyramid.fusion import TopDown, at_tokens, initialise, is_whole, on_grid
from jepakit.nn.pyramid.level import Level
from jepakit.nn.pyramid.pools import Attention, Convolution, Pool, average, maximum
from jepakit.nn.pyramid.windows import window_sum
from jepakit.tokens import TokenSet
from jepakit.tokens._arguments import check_same_device, check_token_set
from jepakit.tokens._grid import level_grids

__all__ = ["HierarchicalPyramid"]


class HierarchicalPyramid(nn.Module):
    r"""Levels of abstraction from one set of tokens, pooled on the grid.

    Level 0 is what comes in. A cell $c$ of level $l$ is a window of $2^l$ positions along each
    axis, cut off by the border, so that sides are halved upwards and no token is lost. With the
    valid positions $S_c$ under it, `pool="avg"` gives
    $x^l_c = \frac{1}{|S_c|} \sum_{p \in S_c} x^0_p$, one mean and no mean of means.
    Then, where asked for, come `fusion`, `projection` and `norm`, each level with parameters of its
    own. Which cells a level has follows from the tokens alone, never from what was learned; a
    not-valid token has no part in anything.

    No pool moves a constant field, whatever has been learned: without fusion, projection and norm
    it is the same constant on every level.

    In a student, wrap encoder and pyramid in one module and build the teacher from that: a pyramid
    with parameters is averaged with the rest. One trained projection on both sides of a loss could
    bring it to zero by being constant.

    Args:
        grid_size: `(L,)`, `(H, W)` or `(T, H, W)` in patches, of level 0.
        dim: Width of a token, on every level.
        num_levels: Levels, the finest included.
        pool: `"avg"`; `"max"`, channel by channel; `"conv"`, a convolution with stride 2 from each
            level to the next, whose kernel sums to the identity and starts as the average (after
            `projection` it is any kernel); `"attention"`, a mean with weights from a learned query
            for each level, over all valid positions of a window.
        valid_if: A coarse cell is valid if `"any"` of the positions under it is, or if `"all"` are.
        fusion: From coarse to fine, as in a feature pyramid network with lateral maps of kernel
            size 1: upsampled levels are added (`"fpn-add"`) or stand beside the finer ones in the
            lateral map (`"fpn-concat"`).
        upsample: How a coarse level is read at finer cells: `"nearest"` is the cell above,
            `"bilinear"` (linear along each axis) mixes in its valid neighbours. Only with `fusion`.
        projection: `"linear"` for a linear map on each level.
        norm: `"layer"` for a layer norm on each level, at the end.

    Raises:
        ValueError: If the grid is a single cell before the last level, or an argument is unknown or
            cannot take effect (`upsample` without `fusion`; another `pool`, `valid_if` or `fusion`
            than the default on a single level).

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
        jepakit's own. Fusion after feature pyramid networks (arXiv:1612.03144); differences: the
        result is projected with kernel size 1, where they convolve with 3, and only if asked;
        absent cells have no share.
    """

    def __init__(
        self,
        grid_size: tuple[int, ...],
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
        check_grid_size("grid_size", grid_size)
        check_int("dim", dim, minimum=1)
        check_choice("pool", pool, ("avg", "max", "conv", "attention"))
        check_choice("valid_if", valid_if, ("any", "all"))
        check_choice("fusion", fusion, ("fpn-add", "fpn-concat", None))
        check_choice("upsample", upsample, ("nearest", "bilinear"))
        check_choice("projection", projection, ("linear", None))
        check_choice("norm", norm, ("layer", None))
        self.grid_sizes = level_grids(grid_size, num_levels)
        _check_takes_effect(num_levels, pool, valid_if, fusion, upsample)
        if norm == "layer" and dim < 2:
            raise ValueError("norm='layer' with dim=1: must have at least 2 entries to normalise")
        self.grid_size = grid_size
        self.dim = dim
        self.num_levels = num_levels
        self.pool = pool
        self.valid_if = valid_if
        self.fusion = fusion
        self.upsample = upsample
        self.projection = projection
        self.norm = norm

        # What is not asked for is no submodule: without parameters `repr` is the call.
        self.pooling: Pool
        if pool == "conv":
            self.pooling = Convolution(dim, len(grid_size), num_levels)
        elif pool == "attention":
            self.pooling = Attention(dim, num_levels)
        else:
            self.pooling = average if pool == "avg" else maximum
        if fusion is not None:
            self.top_down = TopDown(dim, num_levels, fusion, upsample)
        if projection is not None:
            self.projections = nn.ModuleList(nn.Linear(dim, dim) for _ in range(num_levels))
            for linear in self.projections:
                initialise(linear)
        if norm is not None:
            self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=1e-6) for _ in range(num_levels))

    def forward(
        self, features: Float[Tensor, "b n d"], tokens: TokenSet | None = None
    ) -> list[Level]:
        """The levels, finest first.

        Of the whole grid every level has all of its cells. Of a set of `n` tokens a level with `M`
        cells has a set of `min(n, M)` entries, the most that may be valid: lengths follow from
        shapes, so nothing is read back, and the cells are those of `tokens.coarsen(level)`.

        Args:
            features: The encoder's tokens.
            tokens: Where they are, `[batch, n]`; None for the whole grid.
        """
        self._check(features, tokens)
        if tokens is None:
            tokens = TokenSet.full(self.grid_size, features.shape[:1], device=features.device)
        levels = self._pooled(_absent_as_zero(features, tokens), tokens)
        if self.fusion is not None:
            levels = self.top_down(levels)
        if self.projection is not None:
            levels = _each(self.projections, levels)
        if self.norm is not None:
            levels = _each(self.norms, levels)
        return [Level(_absent_as_zero(x, cells), cells) for x, cells in levels]

    def _pooled(self, features: Tensor, tokens: TokenSet) -> list[Level]:
        if self.num_levels == 1:
            return [Level(features, tokens)]
        field = on_grid(features, tokens)
        # Up to 2**(axes * level) cells are added up: too many for a half type.
        wide = torch.promote_types(field.dtype, torch.float32)
        field = field.to(wide)
        areas = self._counts(field.new_ones(1, field.shape[1], 1))
        whole = is_whole(tokens)
        counts = areas
        if not whole:
            counts = self._counts(tokens.to_mask().unsqueeze(-1).to(wide))
        pooled = self.pooling(field, counts, self.grid_sizes)

        levels = [Level(features, tokens)]
        for level, coarse in enumerate(pooled, start=1):
            grid = self.grid_sizes[level]
            if whole:
                cells = TokenSet.full(grid, features.shape[:1], device=features.device)
            else:
                least = areas[level] if self.valid_if == "all" else 1
                cells = self._cells((counts[level] >= least).squeeze(-1), tokens, grid)
            levels.append(Level(at_tokens(coarse, cells).to(features.dtype), cells))
        return levels

    def _counts(self, valid: Float[Tensor, "_ _ 1"]) -> list[Float[Tensor, "_ _ 1"]]:
        """For each level, the number of valid positions under every cell."""
        counts = [valid]
        for grid in self.grid_sizes[:-1]:
            counts.append(window_sum(counts[-1], grid))
        return counts

    def _cells(
        self, valid: Bool[Tensor, "b M"], tokens: TokenSet, grid: tuple[int, ...]
    ) -> TokenSet:
        # Every valid cell holds a token, so there are no more of them than tokens.
        return TokenSet._up_to_length(valid, min(tokens.shape[-1], valid.shape[-1]), grid)

    def _check(self, features: Tensor, tokens: TokenSet | None) -> None:
        check_floating("features", features)
        if features.dim() != 3 or features.shape[-1] != self.dim:
            raise ValueError(
                f"features {tuple(features.shape)}: must be [batch, n, {self.dim}], the dim that "
                "the pyramid was built with"
            )
        if len(features) == 0:
            raise ValueError(f"features {tuple(features.shape)}: the batch must not be empty")
        if tokens is None:
            size = torch.Size(self.grid_size).numel()
            if features.shape[1] != size:
                raise ValueError(
                    f"features {tuple(features.shape)}: must hold all {size} positions of the grid "
                    f"{self.grid_size}; pass the tokens of a part of them"
                )
            return
        check_token_set("tokens", tokens, like="masks.context")
        if tokens.grid_size != self.grid_size:
            raise ValueError(
                f"tokens is on the grid {tokens.grid_size}: must be on the pyramid's grid "
                f"{self.grid_size}"
            )
        if tokens.shape != features.shape[:2]:
            raise ValueError(
                f"tokens {tuple(tokens.shape)}: must list the tokens of features "
                f"{tuple(features.shape)}, so be {tuple(features.shape[:2])}"
            )
        check_same_device("tokens", tokens, "features", features)

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"{self.grid_size}, {self.dim}, num_levels={self.num_levels}, pool={self.pool!r}, "
            f"valid_if={self.valid_if!r}, fusion={self.fusion!r}, upsample={self.upsample!r}, "
            f"projection={self.projection!r}, norm={self.norm!r}"
        )


def _check_takes_effect(
    num_levels: int, pool: str, valid_if: str, fusion: str | None, upsample: str
) -> None:
    if fusion is None and upsample != "nearest":
        raise ValueError(f"upsample={upsample!r}: takes effect only with a fusion")
    if num_levels > 1:
        return
    given = {"pool": (pool, "avg"), "valid_if": (valid_if, "any"), "fusion": (fusion, None)}
    for name, (value, default) in given.items():
        if value != default:
            raise ValueError(f"{name}={value!r}: takes effect only with num_levels of at least 2")


def _each(modules: nn.ModuleList, levels: list[Level]) -> list[Level]:
    return [
        Level(cast(Tensor, module(x)), tokens)
        for module, (x, tokens) in zip(modules, levels, strict=True)
    ]


def _absent_as_zero(features: Tensor, tokens: TokenSet) -> Tensor:
    return features.masked_fill(~tokens.valid.unsqueeze(-1), 0) if tokens.padded else features
