"""`MaskedPredictor`: what stands at the targets, told from the context."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from jepakit._checks import (
    check_bool,
    check_choice,
    check_floating,
    check_fraction,
    check_grid_size,
    check_int,
    check_number,
)
from jepakit.nn.positions import rotary_table, sincos_table
from jepakit.nn.blocks import Block, key_mask
from jepakit.tokens import TokenSet
from jepakit.tokens._arguments import check_same_device, check_token_set
from jepakit.tokens._grid import level_grids

__all__ = ["MaskedPredictor"]


class MaskedPredictor(nn.Module):
    r"""A narrow vision transformer that predicts target tokens from context tokens.

    With context tokens $s_p$, a learned mask token $u$ and positions $e_p$, for every target
    block $T$: $\hat t = W_o\,\mathrm{norm}(\mathrm{blocks}([W_i s_p + e_p]_{p \in C}
    \Vert [u + e_p]_{p \in T}))$, of which the second part is returned. Padding in either set is no
    key and comes out as zeros.

    With `num_levels`, one predictor serves the levels of a pyramid. The grid that a set is on tells
    its level; $p$ is then the centre of a cell in patches of the finest grid, and every token gets
    a learned embedding of its level. Context and targets may be of different levels.

    Args:
        grid_size: `(L,)`, `(H, W)` or `(T, H, W)` in patches.
        encoder_dim: Width of the encoder's tokens.
        predictor_embed_dim: Width inside. The default is I-JEPA's, for encoders from ViT-B on: for
            a smaller one take half its width or less, or the predictor outgrows it.
        depth: Number of blocks.
        num_heads: Attention heads; must divide `predictor_embed_dim`.
        mlp_ratio: Hidden width of a block's MLP as a multiple of `predictor_embed_dim`.
        drop_path: Probability that the last block's branches are dropped in training; rises
            linearly from 0 at the first, so it takes a `depth` of at least 2.
        position: `"sincos"` adds a fixed table, `"learned"` a learned one, `"rope"` turns queries
            and keys instead.
        joint: Predict all blocks of a sample in one sequence, so that they see each other, instead
            of each by itself.
        num_levels: Levels that it serves, the finest, `grid_size`, included; as in
            `HierarchicalPyramid`, sides are halved upwards.
        out_dim: Width of the predictions; None for `encoder_dim`. Targets from several layers stand
            beside each other in it.

    Raises:
        ValueError: If `num_heads` does not divide `predictor_embed_dim`, `position` does not fit
            the width and the number of axes, the grid is a single cell before the last level, or
            another argument is out of its range.

    Example:
        >>> import torch
        >>> from jepakit import MaskedPredictor, RandomMask
        >>> predictor = MaskedPredictor((8, 8), 192, predictor_embed_dim=96, depth=2, num_heads=3)
        >>> masks = RandomMask((8, 8), target_ratio=0.75)(2)
        >>> context = torch.randn(2, 16, 192)
        >>> predictor(context, masks.context, masks.targets).shape
        torch.Size([2, 1, 48, 192])

    Source:
        Assran et al., I-JEPA (arXiv:2301.08243), appendix A.1, with its initialisation: truncated
        normal of 0.02, residual projections of block l divided by sqrt(2 l). Differences: padding
        is masked; `joint` and `position` other than `"sincos"` are additions (joint as in V-JEPA,
        arXiv:2404.08471), and so are levels.
    """

    position_table: Tensor

    def __init__(
        self,
        grid_size: tuple[int, ...],
        encoder_dim: int,
        *,
        predictor_embed_dim: int = 384,
        depth: int = 6,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        position: Literal["sincos", "rope", "learned"] = "sincos",
        joint: bool = False,
        num_levels: int = 1,
        out_dim: int | None = None,
    ) -> None:
        super().__init__()
        check_grid_size("grid_size", grid_size)
        check_int("encoder_dim", encoder_dim, minimum=1)
        check_int("predictor_embed_dim", predictor_embed_dim, minimum=1)
        check_int("depth", depth, minimum=1)
        check_int("num_heads", num_heads, minimum=1)
        check_number("mlp_ratio", mlp_ratio, positive=True)
        check_fraction("drop_path", drop_path)
        check_choice("position", position, ("sincos", "rope", "learned"))
        check_bool("joint", joint)
        grids = level_grids(grid_size, num_levels)
        out_dim = encoder_dim if out_dim is None else out_dim
        check_int("out_dim", out_dim, minimum=1)
        if predictor_embed_dim % num_heads:
            raise ValueError(
                f"num_heads={num_heads}: must divide predictor_embed_dim={predictor_embed_dim}"
            )
        if int(predictor_embed_dim * mlp_ratio) < 1:
            raise ValueError(
                f"mlp_ratio={mlp_ratio}: must leave the MLP at least one hidden unit, so be at "
                f"least 1 / predictor_embed_dim = 1/{predictor_embed_dim}"
            )
        if drop_path == 1:
            raise ValueError("drop_path=1: must be below 1, or the last block never learns")
        if drop_path > 0 and depth == 1:
            raise ValueError(
                f"drop_path={drop_path}: must be 0 with depth=1, since it rises from 0 at the "
                "first block"
            )
        self.grid_size = grid_size
        self.position = position
        self.joint = joint
        self.grid_sizes = grids

        dim = predictor_embed_dim
        self.embed = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(dim))
        # Level by level; a fixed one follows from the arguments and is no part of a checkpoint.
        if position == "learned":
            self.position_table = nn.Parameter(torch.zeros(sum(map(math.prod, grids)), dim))
        else:
            self._table_of = (
                partial(rotary_table, grid_size, dim // num_heads)
                if position == "rope"
                else partial(sincos_table, grid_size, dim)
            )
            self.register_buffer("position_table", self._fixed_table(), persistent=False)
        if num_levels > 1:
            self.level_embedding = nn.Parameter(torch.zeros(num_levels, dim))
        rates = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(dim, num_heads, mlp_ratio, rate) for rate in rates)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.proj = nn.Linear(dim, out_dim)
        self._initialise()

    def _fixed_table(self) -> Tensor:
        return torch.cat([self._table_of(level) for level in range(len(self.grid_sizes))])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MaskedPredictor":
        # A fixed table comes with no checkpoint: one that was left unset (as by `to_empty`, after
        # the meta device) would stay so, and one that was in a half type would stay rounded.
        with torch.no_grad(), torch.device("cpu"):
            was = self._buffers.get("position_table")  # None where it is learned
            # Someone else's positions are left alone.
            fixed = was is not None and (was.is_meta or was.equal(self._fixed_table().to(was)))
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
            if fixed and not self.position_table.is_meta:
                self.position_table.copy_(self._fixed_table())
        return self

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        if self.position == "learned":
            nn.init.trunc_normal_(self.position_table, std=0.02)
        if len(self.grid_sizes) > 1:
            nn.init.trunc_normal_(self.level_embedding, std=0.02)
        with torch.no_grad():
            for number, module in enumerate(self.blocks, start=1):
                block = cast(Block, module)
                block.attn.proj.weight.div_(math.sqrt(2 * number))
                cast(nn.Linear, block.mlp[-1]).weight.div_(math.sqrt(2 * number))

    def forward(
        self,
        features: Float[Tensor, "b n d"],
        context: TokenSet,
        targets: TokenSet,
    ) -> Float[Tensor, "b m k out"]:
        """Predictions at every target, exact zeros where not valid.

        Args:
            features: The encoder's features of the context.
            context: Where they are, `[batch, n]`.
            targets: What to predict, `[batch, num_targets, k]`.
        """
        self._check(features, context, targets)
        seen_at = self._level("context", context)
        asked_at = self._level("targets", targets)
        batch, blocks, length = targets.shape
        known = self.embed(_absent_as_zero(features, context))
        # One sequence for each block, or one for all of them.
        groups = 1 if self.joint else blocks
        asked = targets.idx.flatten(1) if self.joint else targets.idx.flatten(0, 1)
        here = context.idx.repeat_interleave(groups, dim=0)
        unknown = self.mask_token.expand(*asked.shape, -1)
        if len(self.grid_sizes) > 1:
            known = known + self.level_embedding[seen_at]
            unknown = unknown + self.level_embedding[asked_at]
        x = torch.cat([known.repeat_interleave(groups, dim=0), unknown], dim=1)

        rows = torch.cat([here + self._first_row(seen_at), asked + self._first_row(asked_at)], 1)
        place = F.embedding(rows, self.position_table)
        rotary = place if self.position == "rope" else None
        if rotary is None:
            x = x + place
        mask = None
        if context.padded or targets.padded:
            seen = context.valid.repeat_interleave(groups, dim=0)
            mask = key_mask(torch.cat([seen, targets.valid.reshape(asked.shape)], dim=1))
        for block in self.blocks:
            x = block(x, mask, rotary)
        out = self.proj(self.norm(x[:, here.shape[1] :]))
        out = out.view(
            batch, blocks, length, self.proj.out_features
        )  # -1 fails where nothing is asked
        return _absent_as_zero(out, targets)

    def predict_grid(
        self, features: Float[Tensor, "b n d"], context: TokenSet
    ) -> Float[Tensor, "b N out"]:
        """Predictions at every position of the context's grid, visible ones included.

        Args:
            features: The encoder's features of the context.
            context: Where they are, `[batch, n]`.
        """
        check_floating("features", features)
        check_token_set("context", context, like="masks.context")
        grid = context.grid_size
        everything = TokenSet.full(grid, (len(features), 1), device=features.device)
        return cast(Tensor, self(features, context, everything)).squeeze(1)

    def _level(self, name: str, tokens: TokenSet) -> int:
        # No `in` and no `index`: to a tracer for which sides are symbols, each is one condition on
        # all grids together, and takes it ten seconds.
        for level, grid in enumerate(self.grid_sizes):
            if tokens.grid_size == grid:
                return level
        ours = f"the predictor's grid {self.grid_size}"
        if len(self.grid_sizes) > 1:
            ours = f"one of the predictor's grids {self.grid_sizes}"
        raise ValueError(f"{name} is on the grid {tokens.grid_size}: must be on {ours}")

    def _first_row(self, level: int) -> int:
        """Where the positions of a level begin in the table."""
        return sum(map(math.prod, self.grid_sizes[:level]))

    def _check(self, features: Tensor, context: TokenSet, targets: TokenSet) -> None:
        check_floating("features", features)
        check_token_set("context", context, like="masks.context")
        check_token_set("targets", targets, like="masks.targets")
        width = self.embed.in_features
        if features.dim() != 3 or features.shape[-1] != width:
            raise ValueError(
                f"features {tuple(features.shape)}: must be [batch, n, {width}], the encoder_dim "
                "that the predictor was built with"
            )
        if len(features) == 0:
            raise ValueError(f"features {tuple(features.shape)}: the batch must not be empty")
        if context.shape != features.shape[:2]:
            raise ValueError(
                f"context {tuple(context.shape)}: must list the positions of features "
                f"{tuple(features.shape)}, so be {tuple(features.shape[:2])}"
            )
        if targets.idx.dim() != 3 or len(targets.idx) != len(features):
            raise ValueError(
                f"targets {tuple(targets.shape)}: must be [batch, num_targets, k] with "
                f"the batch size of features, {len(features)}"
            )
        check_same_device("context", context, "features", features)
        check_same_device("targets", targets, "features", features)

    def extra_repr(self) -> str:
        """Arguments that the submodules do not show."""
        return (
            f"grid_size={self.grid_size}, position={self.position!r}, joint={self.joint}, "
            f"num_levels={len(self.grid_sizes)}"
        )


def _absent_as_zero(features: Tensor, tokens: TokenSet) -> Tensor:
    return features.masked_fill(~tokens.valid.unsqueeze(-1), 0) if tokens.padded else features
