"""Predictor: a narrow vision transformer from context features to predictions at the targets."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, cast

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from jepakit._checks import (
    as_bool,
    as_choice,
    as_fraction,
    as_grid_size,
    as_int,
    as_number,
    check_floating,
)
from jepakit.nn._blocks import Block
from jepakit.nn._padding import check_features, check_positions, key_mask, zero_padding
from jepakit.nn.positions import rotary_table, sincos_table
from jepakit.tokens import TokenSet
from jepakit.tokens._arguments import check_same_device, check_token_set
from jepakit.tokens._grid import level_grids

__all__ = ["MaskedPredictor"]


class MaskedPredictor(nn.Module):
    r"""A narrow vision transformer that predicts target features from context features.

    With context features $s_p$, a learned mask token $u$ and position embeddings $e_p$, for every
    target block $T$: $\hat t = W_o\,\mathrm{norm}(\mathrm{blocks}([W_i s_p + e_p]_{p \in C}
    \Vert [u + e_p]_{p \in T}))$, restricted to $T$. Padding in either set is masked as a key and
    comes out as zeros.

    With `num_levels`, one predictor serves all levels of a pyramid. The level of a set follows from
    its grid; $p$ is then the centre of a cell in patches of the finest grid, and every entry gets
    a learned embedding of its level. Context and targets may be of different levels.

    Args:
        grid_size: `(L,)`, `(H, W)` or `(T, H, W)` in patches.
        encoder_dim: Width of the encoder's features.
        predictor_embed_dim: Width of the predictor. The default is I-JEPA's, for ViT-B and larger;
            for a smaller encoder take at most half its width.
        depth: Number of blocks.
        num_heads: Attention heads; must divide `predictor_embed_dim`.
        mlp_ratio: Hidden width of a block's MLP as a multiple of `predictor_embed_dim`.
        drop_path: Probability, below 1, that a residual branch of the last block is dropped in
            training. It rises linearly from 0 at the first block.
        position: `"sincos"` adds a fixed table, `"learned"` a learned one, `"rope"` rotates queries
            and keys.
        joint: Predict all target blocks of a sample in one sequence, where they attend to each
            other, instead of each block in a sequence of its own.
        num_levels: Number of pyramid levels, including the finest, `grid_size`. Sides are halved
            upwards from level to level, as in `HierarchicalPyramid`.
        out_dim: Width of the predictions; None for `encoder_dim`. Larger for targets from several
            layers, concatenated.

    Raises:
        ValueError: If `position` does not fit the width and the number of axes.

    Example:
        >>> import torch
        >>> from jepakit import MaskedPredictor, RandomMask
        >>> predictor = MaskedPredictor((8, 8), 192, predictor_embed_dim=96, depth=2, num_heads=3)
        >>> masks = RandomMask((8, 8), target_ratio=0.75)(2)
        >>> features = torch.randn(2, 16, 192)
        >>> predictor(features, masks.context, masks.targets).shape
        torch.Size([2, 1, 48, 192])

    Source:
        Assran et al., I-JEPA (arXiv:2301.08243), appendix A.1, with its initialisation: truncated
        normal with a std of 0.02, residual projections of block l divided by sqrt(2 l).
        Differences: padding is masked; `joint` (as in V-JEPA, arXiv:2404.08471), `position` other
        than `"sincos"` and levels are additions.
    """

    position_table: Tensor

    def __init__(
        self,
        grid_size: Sequence[int],
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
        self.grid_size = as_grid_size("grid_size", grid_size)
        self.grid_sizes = level_grids(self.grid_size, num_levels)
        encoder_dim = as_int("encoder_dim", encoder_dim, minimum=1)
        out_dim = encoder_dim if out_dim is None else as_int("out_dim", out_dim, minimum=1)
        dim = as_int("predictor_embed_dim", predictor_embed_dim, minimum=1)
        depth = as_int("depth", depth, minimum=1)
        num_heads = as_int("num_heads", num_heads, minimum=1)
        mlp_ratio = as_number("mlp_ratio", mlp_ratio, positive=True)
        drop_path = as_fraction("drop_path", drop_path, open_high=True)
        self.position = as_choice("position", position, ("sincos", "rope", "learned"))
        self.joint = as_bool("joint", joint)
        if dim % num_heads:
            raise ValueError(f"num_heads={num_heads}: must divide predictor_embed_dim={dim}")
        if int(dim * mlp_ratio) < 1:
            raise ValueError(f"mlp_ratio={mlp_ratio}: must leave the MLP at least one hidden unit")
        if drop_path > 0 and depth == 1:
            raise ValueError(f"drop_path={drop_path}: must be 0 with depth=1")

        self.embed = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(dim))
        # One table for all levels, the finest first: for 4 x 4 patches and 2 levels, rows 0 to 15
        # are the patches and rows 16 to 19 the 2 x 2 cells. Fixed tables follow from the arguments
        # and are not part of a checkpoint.
        self._head_dim = dim // num_heads
        if position == "learned":
            num_rows = sum(math.prod(grid) for grid in self.grid_sizes)
            self.position_table = nn.Parameter(torch.zeros(num_rows, dim))
        else:
            self.register_buffer("position_table", self._fixed_table(), persistent=False)
        if len(self.grid_sizes) > 1:
            self.level_embedding = nn.Parameter(torch.zeros(len(self.grid_sizes), dim))
        rates = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(dim, num_heads, mlp_ratio, rate) for rate in rates)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.proj = nn.Linear(dim, out_dim)
        self._initialise()

    def _fixed_table(self) -> Tensor:
        is_rope, grid = self.position == "rope", self.grid_size
        width = self._head_dim if is_rope else self.mask_token.numel()
        table = rotary_table if is_rope else sincos_table
        return torch.cat([table(grid, width, level) for level in range(len(self.grid_sizes))])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MaskedPredictor":
        # `to`, `half`, `to_empty` and the like end here. A fixed table is in no checkpoint, so it
        # is computed anew: after `to_empty` on a module from the meta device it would hold
        # arbitrary values, and after a conversion to half precision and back it would stay rounded.
        with torch.no_grad(), torch.device("cpu"):
            before = self._buffers.get("position_table")  # None where it is learned
            # A table that the user has replaced is left alone.
            is_ours = before is not None and (
                before.is_meta or before.equal(self._fixed_table().to(before))
            )
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
            if is_ours and not self.position_table.is_meta:
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
            for layer, module in enumerate(self.blocks, start=1):
                block = cast(Block, module)
                block.attn.proj.weight.div_(math.sqrt(2 * layer))
                cast(nn.Linear, block.mlp[-1]).weight.div_(math.sqrt(2 * layer))

    def forward(
        self, features: Float[Tensor, "b n d"], context: TokenSet, targets: TokenSet
    ) -> Float[Tensor, "b m k out"]:
        """Predictions at the `targets` `[b, m, k]` from the `features` of a `context` `[b, n]`."""
        self._check(features, context, targets)
        context_level = self._level("context", context)
        target_level = self._level("targets", targets)
        batch, num_targets, length = targets.shape
        # One sequence for all target blocks of a sample, or one for each block. Either way the
        # context comes first: with 2 blocks of 3 targets and 5 context positions, a joint sequence
        # has 5 + 6 entries; else there are two of 5 + 3.
        sequences, copies = ("b (m k)", 1) if self.joint else ("(b m) k", num_targets)

        def join(context_part: Tensor, target_part: Tensor) -> Tensor:
            repeated = repeat(context_part, "b n ... -> (b copies) n ...", copies=copies)
            return torch.cat(
                [repeated, rearrange(target_part, f"b m k ... -> {sequences} ...")], dim=1
            )

        visible = self.embed(zero_padding(features, context))
        mask_token: Tensor = self.mask_token
        if len(self.grid_sizes) > 1:
            visible = visible + self.level_embedding[context_level]
            mask_token = mask_token + self.level_embedding[target_level]
        x = join(visible, mask_token.expand(*targets.shape, -1))

        rows = join(
            context.idx + self._first_row(context_level),
            targets.idx + self._first_row(target_level),
        )
        positions = F.embedding(rows, self.position_table)
        rotary = positions if self.position == "rope" else None
        if rotary is None:
            x = x + positions

        padded = context.padded or targets.padded
        mask = key_mask(join(context.valid, targets.valid)) if padded else None
        for block in self.blocks:
            x = block(x, mask, rotary)
        out = self.proj(self.norm(x[:, context.shape[-1] :]))
        # All three sizes are given: with k = 0, empty target sets, none could be inferred.
        out = rearrange(out, f"{sequences} d -> b m k d", b=batch, m=num_targets, k=length)
        return zero_padding(out, targets)

    def predict_grid(
        self, features: Float[Tensor, "b n d"], context: TokenSet
    ) -> Float[Tensor, "b N out"]:
        """Predictions at every position of the grid, from `features` of the `context`."""
        check_floating("features", features)
        check_token_set("context", context, like="masks.context")
        whole = TokenSet.full(context.grid_size, (len(features), 1), device=features.device)
        return cast(Tensor, self(features, context, whole)).squeeze(1)

    def _level(self, name: str, tokens: TokenSet) -> int:
        # Neither `in` nor `index`: with symbolic sides the compiler's tracer makes one condition on
        # all grids together of them, which takes it ten seconds.
        for level, grid in enumerate(self.grid_sizes):
            if tokens.grid_size == grid:
                return level
        grids = self.grid_sizes
        raise ValueError(f"{name} is on the grid {tokens.grid_size}: must be on one of {grids}")

    def _first_row(self, level: int) -> int:
        return sum(math.prod(grid) for grid in self.grid_sizes[:level])

    def _check(self, features: Tensor, context: TokenSet, targets: TokenSet) -> None:
        check_token_set("context", context, like="masks.context")
        check_token_set("targets", targets, like="masks.targets")
        rule = "the encoder_dim that the predictor was built with"
        check_features(features, self.embed.in_features, rule)
        check_positions("context", context, features)
        if targets.idx.dim() != 3 or len(targets.idx) != len(features):
            raise ValueError(
                f"targets {tuple(targets.shape)}: must be [batch, num_targets, k] with "
                f"the batch size of features, {len(features)}"
            )
        check_same_device("targets", targets, "features", features)

    def extra_repr(self) -> str:
        """Arguments that the submodules do not show."""
        levels = len(self.grid_sizes)
        choices = f"position={self.position!r}, joint={self.joint}, num_levels={levels}"
        return f"grid_size={self.grid_size}, {choices}"
