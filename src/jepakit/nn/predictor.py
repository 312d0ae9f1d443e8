"""Predictor: a narrow vision transformer from context features to predictions at the targets."""

from collections.abc import Sequence
from typing import Literal, cast

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from jepakit._checks import (
    MAX_DEPTH,
    as_bool,
    as_grid_size,
    as_int,
    check_features,
    check_floating,
    check_weight_dtype,
)
from jepakit.nn._padding import additive_key_mask, zero_padding
from jepakit.nn._positioned import Positioned
from jepakit.nn.blocks import Block, drop_path_rates, init_predictor
from jepakit.tokens import TokenSet
from jepakit.tokens._arguments import check_positions, check_same_device, check_token_set
from jepakit.tokens._grid import level_grids

__all__ = ["MaskedPredictor"]


class MaskedPredictor(Positioned):
    r"""A narrow vision transformer that predicts target features from context features.

    With context features $s_p$, a learned mask token $u$ and position embeddings $e_p$, for every
    target block $T$: $\hat t = W_o\,\mathrm{norm}(\mathrm{blocks}([W_i s_p + e_p]_{p \in C}
    \Vert [u + e_p]_{p \in T}))$, restricted to $T$. Padding in either set is masked as a key and
    comes out as zeros.

    Fixed positions (all but `"learned"`) count patches from the first one of each axis, on any
    grid: a larger one has more rows and columns, and none is interpolated. So with one level the
    sets of a call may lie on any grid with as many axes as `grid_size`, both on the same one, and
    images of several sizes share one predictor.

    With `num_levels`, one predictor serves all levels of a pyramid over `grid_size`. The level of a
    set follows from its grid; $p$ is then the centre of a cell in patches of the finest grid, and
    every entry gets a learned embedding of its level. Context and targets may be of different
    levels. Sets on other grids are refused, since their level could not be known.

    Args:
        grid_size: `(L,)`, `(H, W)` or `(T, H, W)` in patches. With fixed positions and one level,
            only the number of axes matters. Sides beyond both this grid's longest and 256 are
            possible, but their positions are computed anew in every call.
        encoder_dim: Width of the encoder's features.
        predictor_embed_dim: Width of the predictor. The default is I-JEPA's, for ViT-B and larger;
            for a smaller encoder take at most half its width.
        depth: Number of blocks.
        num_heads: Attention heads; must divide `predictor_embed_dim`.
        mlp_ratio: Hidden width of a block's MLP as a multiple of `predictor_embed_dim`.
        drop_path: Probability, below 1, that a residual branch of the last block is dropped in
            training. It rises linearly from 0 at the first block.
        position: `"sincos"` adds a fixed table, `"learned"` a learned one, `"rope"` rotates queries
            and keys; `"rope-vjepa2"` rotates them as the published V-JEPA 2 does, on three axes.
        uniform_power: Whether all axes have the same share of the features of `"sincos"`. False
            gives the first of three axes half of them and the others a quarter each.
        joint: Predict all target blocks of a sample in one sequence, where they attend to each
            other, instead of each block in a sequence of its own.
        num_mask_tokens: Number of learned mask tokens, of which each call takes one: one for each
            kind of masks that share the predictor, as in V-JEPA.
        num_levels: Number of pyramid levels, including the finest, `grid_size`. Sides are halved
            upwards from level to level, as in `HierarchicalPyramid`.
        out_dim: Width of the predictions; None for `encoder_dim`. Larger for targets from several
            layers, concatenated.

    Raises:
        ValueError: If `position` does not fit the width and the number of axes. In a call, if a set
            is on a grid that the predictor has no positions for, or `mask_token` is not below
            `num_mask_tokens`.

    Example:
        >>> import torch
        >>> from jepakit import MaskedPredictor, RandomMask
        >>> predictor = MaskedPredictor((8, 8), 192, predictor_embed_dim=96, depth=2, num_heads=3)
        >>> masks = RandomMask((8, 8), target_ratio=0.75)(2)
        >>> features = torch.randn(2, 16, 192)
        >>> predictor(features, masks.context, masks.targets).shape
        torch.Size([2, 1, 48, 192])
        >>> wide = RandomMask((6, 12), target_ratio=0.75)(2)  # images of another size
        >>> predictor(torch.randn(2, 18, 192), wide.context, wide.targets).shape
        torch.Size([2, 1, 54, 192])

    Source:
        Assran et al., I-JEPA (arXiv:2301.08243), appendix A.1, with its initialisation: truncated
        normal with a std of 0.02, residual projections of block l divided by sqrt(2 l).
        Differences: padding is masked; `joint` and `num_mask_tokens` (both as in V-JEPA,
        arXiv:2404.08471, whose mask tokens start at zero), `position` other than `"sincos"`, other
        grids and levels are additions.
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
        position: Literal["sincos", "rope", "rope-vjepa2", "learned"] = "sincos",
        uniform_power: bool = True,
        joint: bool = False,
        num_mask_tokens: int = 1,
        num_levels: int = 1,
        out_dim: int | None = None,
    ) -> None:
        super().__init__()
        grid_sizes = level_grids(as_grid_size("grid_size", grid_size), num_levels)
        encoder_dim = as_int("encoder_dim", encoder_dim, minimum=1)
        out_dim = encoder_dim if out_dim is None else as_int("out_dim", out_dim, minimum=1)
        dim = as_int("predictor_embed_dim", predictor_embed_dim, minimum=1)
        depth = as_int("depth", depth, minimum=1, maximum=MAX_DEPTH)
        num_heads = as_int("num_heads", num_heads, minimum=1)
        self.num_mask_tokens = as_int("num_mask_tokens", num_mask_tokens, minimum=1)
        rates = drop_path_rates(drop_path, depth)
        self.joint = as_bool("joint", joint)
        if dim % num_heads:
            raise ValueError(f"num_heads={num_heads}: must divide predictor_embed_dim={dim}")

        self.embed = nn.Linear(encoder_dim, dim)
        # One parameter for all: DDP stops at a parameter that a call does not use.
        self.mask_token = nn.Parameter(torch.zeros(self.num_mask_tokens, dim))
        self._add_positions(
            position,
            grid_sizes,
            dim,
            num_heads,
            uniform_power=uniform_power,
            dim_name="predictor_embed_dim",
        )
        if len(self.grid_sizes) > 1:
            self.level_embedding = nn.Parameter(torch.zeros(len(self.grid_sizes), dim))
        self.blocks = nn.ModuleList(
            Block(
                dim,
                num_heads,
                mlp_ratio=mlp_ratio,
                drop_path=rate,
                rotary_pairs=self._rotary_pairs,
            )
            for rate in rates
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.proj = nn.Linear(dim, out_dim)
        self._initialise()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """With `enable`, compute blocks again in the backward pass and keep no activations."""
        for block in self.blocks:
            cast(Block, block).set_grad_checkpointing(enable)

    def _initialise(self) -> None:
        init_predictor(self, self.blocks)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        if self.position == "learned":
            nn.init.trunc_normal_(self.position_table, std=0.02)
        if len(self.grid_sizes) > 1:
            nn.init.trunc_normal_(self.level_embedding, std=0.02)

    def forward(
        self,
        features: Float[Tensor, "b n d"],
        context: TokenSet,
        targets: TokenSet,
        *,
        mask_token: int = 0,
    ) -> Float[Tensor, "b m k out"]:
        """Predictions at the `targets` `[b, m, k]` from the `features` of a `context` `[b, n]`.

        Args:
            features: Features of the context.
            context: Positions of the features.
            targets: Positions to predict.
            mask_token: Number of the mask token to put there, below `num_mask_tokens`.
        """
        self._check(features, context, targets)
        number = self._mask_token_number(mask_token)
        context_level = self._level("context", context)
        target_level = self._level("targets", targets)
        batch, num_targets, length = targets.shape

        visible = self.embed(zero_padding(features, context))
        dtype = visible.dtype  # of queries and keys too, also under autocast
        hidden = self.mask_token[number].expand(*targets.shape, -1)
        if len(self.grid_sizes) > 1:
            visible = visible + self.level_embedding[context_level]
            hidden = hidden + self.level_embedding[target_level]

        # Rows of a fixed or learned table: embeddings, or cosines and sines for `rope`.
        table = self._position_rows(context.grid_size, context_level)
        context_positions = F.embedding(context.idx, table)
        if context.grid_size != targets.grid_size:
            table = self._position_rows(targets.grid_size, target_level)
        target_positions = F.embedding(targets.idx, table)
        rotary = None
        if self._is_rotary:
            rotary = self._join(context_positions, target_positions).to(dtype)
        else:
            visible, hidden = visible + context_positions, hidden + target_positions

        x = self._join(visible, hidden)
        mask = None
        if context.padded or targets.padded:
            mask = additive_key_mask(self._join(context.valid, targets.valid), dtype)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, mask, rotary)
        # Only targets are predicted: the last block's output at the context is not needed.
        x = last(x, mask, rotary, context.shape[-1])
        out = self.proj(self.norm(x))
        # All three sizes are given: with k = 0, empty target sets, none could be inferred.
        sequences = "b (m k)" if self.joint else "(b m) k"
        out = rearrange(out, f"{sequences} d -> b m k d", b=batch, m=num_targets, k=length)
        return zero_padding(out, targets)

    def _join(
        self, context_part: Shaped[Tensor, "b n ..."], target_part: Shaped[Tensor, "b m k ..."]
    ) -> Shaped[Tensor, "sequences length ..."]:
        """One sequence for all target blocks of a sample, or one for each; the context comes first.

        With 2 blocks of 3 targets and 5 context positions, a joint sequence has 5 + 6 entries;
        else there are two of 5 + 3.
        """
        if self.joint:
            blocks, copies = rearrange(target_part, "b m k ... -> b (m k) ..."), 1
        else:
            blocks, copies = (
                rearrange(target_part, "b m k ... -> (b m) k ..."),
                target_part.shape[1],
            )
        repeated = repeat(context_part, "b n ... -> (b copies) n ...", copies=copies)
        return torch.cat([repeated, blocks], dim=1)

    def predict_grid(
        self, features: Float[Tensor, "b n d"], context: TokenSet, *, mask_token: int = 0
    ) -> Float[Tensor, "b N out"]:
        """Predict at every position of the grid.

        Args:
            features, context, mask_token: As in `forward`.
        """
        check_floating("features", features)
        check_token_set("context", context, like="masks.context")
        whole = TokenSet.full(context.grid_size, (len(features), 1), device=features.device)
        pred = self(features, context, whole, mask_token=mask_token)
        return cast(Tensor, pred).squeeze(1)

    def _mask_token_number(self, mask_token: int) -> int:
        number = as_int("mask_token", mask_token, minimum=0)
        if number >= self.num_mask_tokens:
            raise ValueError(
                f"mask_token={number}: must be below num_mask_tokens={self.num_mask_tokens}"
            )
        return number

    def _level(self, name: str, tokens: TokenSet) -> int:
        """Level of a set; raise if its grid has no positions here."""
        grid, axes = tokens.grid_size, len(self.grid_size)
        if self._takes_any_grid:
            if len(grid) != axes:
                raise ValueError(
                    f"{name} is on the grid {grid}: must have {axes} axes, as the predictor's "
                    f"grid_size {self.grid_size}"
                )
            return 0
        # Neither `in` nor `index`: with symbolic sides the compiler's tracer makes one condition on
        # all grids together of them, which takes it ten seconds.
        for level, known in enumerate(self.grid_sizes):
            if grid == known:
                return level
        reason = "have learned positions" if self.position == "learned" else "have a known level"
        raise ValueError(
            f"{name} is on the grid {grid}: must be on one of {self.grid_sizes}, which {reason}; "
            "for any grid, build the predictor with position='sincos' or 'rope' and num_levels=1"
        )

    def _check(self, features: Tensor, context: TokenSet, targets: TokenSet) -> None:
        check_token_set("context", context, like="masks.context")
        check_token_set("targets", targets, like="masks.targets")
        rule = "the encoder_dim that the predictor was built with"
        check_features(features, self.embed.in_features, rule)
        check_weight_dtype("features", features, self.embed)
        check_positions("context", context, features)
        if targets.idx.dim() != 3 or len(targets.idx) != len(features):
            raise ValueError(
                f"targets {tuple(targets.shape)}: must be [batch, num_targets, k] with "
                f"the batch size of features, {len(features)}"
            )
        check_same_device("targets", targets, "features", features)
        if self._takes_any_grid and targets.grid_size != context.grid_size:
            raise ValueError(
                f"targets is on the grid {targets.grid_size}, context on {context.grid_size}: must "
                "be on one grid, unless num_levels is above 1"
            )

    def extra_repr(self) -> str:
        """Arguments that the submodules do not show."""
        levels = len(self.grid_sizes)
        choices = f"position={self.position!r}, joint={self.joint}, num_levels={levels}"
        tokens = f"num_mask_tokens={self.num_mask_tokens}"
        return (
            f"grid_size={self.grid_size}, {choices}, {tokens}, uniform_power={self.uniform_power}"
        )
