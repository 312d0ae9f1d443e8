"""Pooling of ragged sets and sequences: one vector from the valid features of each."""

from typing import Literal, cast

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from jepakit._checks import (
    MAX_DEPTH,
    MAX_POSITIONS,
    as_choice,
    as_int,
    check_floating,
    check_row_mask,
    check_weight_dtype,
)
from jepakit._rows import everything_valid, zero_invalid
from jepakit.nn._padding import additive_key_mask
from jepakit.nn.blocks import Block, init_linear
from jepakit.nn.positions import sincos_table

__all__ = ["AttentionPool", "SetEncoder", "TemporalPool"]


class AttentionPool(nn.Module):
    r"""One vector from a ragged set: attention of learned queries to its valid features.

    $$y = W_o\,\mathrm{concat}_h \sum_{i\ \mathrm{valid}} \alpha_{hi}\, W_v^h\, \bar x_i, \qquad
        \alpha_h = \mathrm{softmax}_i\big(q_h \cdot W_k^h \bar x_i / \sqrt{d_h}\big), \qquad
        \bar x_i = \mathrm{norm}(x_i)$$

    The order of the entries does not matter. Queries start small, so the pool starts close to a
    mean. Padding is no key and gets no gradient; an empty set comes out as zeros.

    Args:
        dim: Width of the features and of the vector.
        num_queries: Number of vectors to pool a set to.
        num_heads: Attention heads; must divide `dim`.

    Raises:
        ValueError: If `num_heads` does not divide `dim`.

    Example:
        >>> import torch
        >>> from jepakit.nn import AttentionPool
        >>> pool = AttentionPool(64)
        >>> valid = torch.tensor([[True, True, False], [False, False, False]])
        >>> pool(torch.randn(2, 3, 64), valid).shape
        torch.Size([2, 64])
        >>> AttentionPool(64, num_queries=4)(torch.randn(2, 3, 64), valid).shape
        torch.Size([2, 4, 64])

    Source:
        Pooling by multi-head attention of the Set Transformer (arXiv:1810.00825). Difference: no
        MLP, and no residual branch from the queries.
    """

    def __init__(self, dim: int, num_queries: int = 1, *, num_heads: int = 4) -> None:
        super().__init__()
        self.dim = as_int("dim", dim, minimum=1)
        self.num_queries = as_int("num_queries", num_queries, minimum=1)
        self.norm = nn.LayerNorm(self.dim, eps=1e-6)
        self.attention = QueryAttention(self.dim, self.num_queries, num_heads)

    def forward(
        self, features: Float[Tensor, "*batch n d"], valid: Bool[Tensor, "*batch n"] | None = None
    ) -> Float[Tensor, "*batch_and_queries d"]:
        """Vectors `[*batch d]`, or `[*batch num_queries d]` of several queries.

        Args:
            features: Features of the entries of each set.
            valid: True where an entry is present, in any pattern. All if None.
        """
        rows, present = _flat(features, valid, self.dim)
        check_weight_dtype("features", features, self.norm)
        pooled = self.attention(self.norm(rows), present)
        if self.num_queries == 1:
            pooled = pooled.squeeze(1)
        return cast(Tensor, pooled.unflatten(0, features.shape[:-2]))


class TemporalPool(nn.Module):
    r"""One vector from a ragged sequence, in which the order of the steps matters.

    - `"attention"`: a query attends to $\mathrm{norm}(x_t) + p_t$ as in `AttentionPool`, with
      learned positions in time $p_t$ that start as sines and cosines, and a learned term
      $\theta_{ht}$ added to the score of step $t$ in head $h$.
    - `"softmax"`: $y = \sum_t w_t x_t$ with one weight for each step, shared by all features,
      $w = \mathrm{softmax}_{t\ \mathrm{valid}}(\theta_t)$.
    - `"last"`: the last valid step.

    Scores start at $\theta_t = \log(t + 1)$, so that step $t$ weighs $t + 1$: every mode gives
    A-B-C and C-B-A different vectors before any training. With positions on the features alone,
    a pool starts nearly blind to order. Steps are numbered by their
    place in the sequence. One that is not valid takes part in no weight and gets no gradient;
    padding at the end changes nothing. A sequence without a valid step comes out as zeros.

    Args:
        dim: Width of the features and of the vector.
        max_len: Largest number of steps.
        mode: One of the above.
        num_heads: Attention heads of `"attention"`, which must divide `dim`; 4 if None.

    Raises:
        ValueError: If `num_heads` does not divide `dim` or comes with another mode. In a call, if a
            sequence is longer than `max_len`.

    Example:
        >>> import torch
        >>> from jepakit.nn import TemporalPool
        >>> pool = TemporalPool(64, max_len=10)
        >>> steps = torch.randn(1, 3, 64)
        >>> forward, backward = pool(steps), pool(steps.flip(1))
        >>> bool((forward - backward).norm() > 0.01 * forward.norm())
        True
        >>> pool(torch.randn(2, 0, 64))[0, :3]  # no step
        tensor([0., 0., 0.], grad_fn=<SliceBackward0>)
    """

    def __init__(
        self,
        dim: int,
        max_len: int,
        *,
        mode: Literal["attention", "softmax", "last"] = "attention",
        num_heads: int | None = None,
    ) -> None:
        super().__init__()
        self.dim = as_int("dim", dim, minimum=1)
        self.max_len = as_int("max_len", max_len, minimum=1, maximum=MAX_POSITIONS)
        self.mode = as_choice("mode", mode, ("attention", "softmax", "last"))
        if mode != "attention" and num_heads is not None:
            raise ValueError(f"num_heads={num_heads}: must be None with mode={mode!r}")
        if self.mode == "attention":
            self.norm = nn.LayerNorm(self.dim, eps=1e-6)
            table = sincos_table((self.max_len,), self.dim + self.dim % 2)
            self.positions = nn.Parameter(table[:, : self.dim].contiguous())
            self.attention = QueryAttention(self.dim, 1, 4 if num_heads is None else num_heads)
            self.scores = nn.Parameter(self._initial_scores().repeat(self.attention.num_heads, 1))
        elif self.mode == "softmax":
            self.scores = nn.Parameter(self._initial_scores())

    def _initial_scores(self) -> Float[Tensor, " max_len"]:
        return torch.arange(1.0, self.max_len + 1).log()

    def forward(
        self, features: Float[Tensor, "*batch t d"], valid: Bool[Tensor, "*batch t"] | None = None
    ) -> Float[Tensor, "*batch d"]:
        """Vectors of the sequences.

        Args:
            features: Features of the steps.
            valid: True where a step is present, in any pattern. All if None.
        """
        rows, present = _flat(features, valid, self.dim)
        length = rows.shape[1]
        if length > self.max_len:
            raise ValueError(
                f"features {tuple(features.shape)}: must have at most max_len={self.max_len} steps"
            )
        if self.mode == "attention":
            check_weight_dtype("features", features, self.norm)
            steps = self.norm(rows) + self.positions[:length]
            pooled = self.attention(steps, present, self.scores[:, :length]).squeeze(1)
        else:
            pooled = (self._weights(present).to(rows.dtype).unsqueeze(1) @ rows).squeeze(1)
        return cast(Tensor, pooled.unflatten(0, features.shape[:-2]))

    def _weights(self, present: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
        """Weight of each step; zeros for a sequence without any."""
        if self.mode == "softmax":
            scores = self.scores[: present.shape[1]].float().masked_fill(~present, -torch.inf)
            empty = ~present.any(dim=1, keepdim=True)
            return scores.masked_fill(empty, 0).softmax(dim=1).masked_fill(empty, 0)
        # The last one has no valid step after it.
        after = present.flip(1).cumsum(dim=1).flip(1) - present.long()
        return (present & (after == 0)).float()

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.dim}, max_len={self.max_len}, mode={self.mode!r}"


class SetEncoder(nn.Module):
    r"""One vector from a ragged set of vectors: attention among the entries, then pooling.

    $$y = \mathrm{pool}\big(\mathrm{blocks}(W x_1, \dots, W x_n)\big)$$

    with an `AttentionPool`, and without positions: the order of the entries does not matter. Where
    an object is belongs into its vector. Padding is no key and gets no gradient; an empty set comes
    out as zeros.

    Args:
        in_dim: Width of an entry.
        dim: Width of the vector.
        depth: Number of blocks.
        num_heads: Attention heads; must divide `dim`.
        mlp_ratio: Hidden width of a block's MLP as a multiple of `dim`.

    Raises:
        ValueError: If `num_heads` does not divide `dim`.

    Example:
        >>> import torch
        >>> from jepakit.nn import SetEncoder
        >>> encoder = SetEncoder(6, 64, depth=2)
        >>> objects = torch.randn(8, 3, 12, 6)  # up to 12 objects in each of 3 steps
        >>> valid = torch.rand(8, 3, 12) < 0.5
        >>> encoder(objects, valid).shape
        torch.Size([8, 3, 64])

    Source:
        Set Transformer (arXiv:1810.00825), with pre-norm blocks.
    """

    def __init__(
        self, in_dim: int, dim: int, depth: int, *, num_heads: int = 4, mlp_ratio: float = 4.0
    ) -> None:
        super().__init__()
        self.in_dim = as_int("in_dim", in_dim, minimum=1)
        self.dim = as_int("dim", dim, minimum=1)
        depth = as_int("depth", depth, minimum=1, maximum=MAX_DEPTH)
        self.embed = nn.Linear(self.in_dim, self.dim)
        self.blocks = nn.ModuleList(
            Block(self.dim, num_heads, mlp_ratio=mlp_ratio) for _ in range(depth)
        )
        init_linear(self.blocks)
        self.pool = AttentionPool(self.dim, num_heads=num_heads)

    def forward(
        self, features: Float[Tensor, "*batch n f"], valid: Bool[Tensor, "*batch n"] | None = None
    ) -> Float[Tensor, "*batch d"]:
        """Vectors of the sets.

        Args:
            features: Vectors of the entries of each set.
            valid: True where an entry is present, in any pattern. All if None.
        """
        return cast(Tensor, self.pool(self.encode_entries(features, valid), valid))

    def encode_entries(
        self, features: Float[Tensor, "*batch n f"], valid: Bool[Tensor, "*batch n"] | None = None
    ) -> Float[Tensor, "*batch n d"]:
        """Features of every entry, before the pool; zeros where there is none.

        Args:
            features, valid: As in `forward`.
        """
        rows, present = _flat(features, valid, self.in_dim)
        check_weight_dtype("features", features, self.embed)
        x = self.embed(rows)
        mask = None if valid is None else additive_key_mask(present, x.dtype)
        for block in self.blocks:
            x = block(x, mask)
        x = zero_invalid(x, present)[:, : features.shape[-2]]
        return cast(Tensor, x.unflatten(0, features.shape[:-2]))  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        """The widths."""
        return f"in_dim={self.in_dim}, dim={self.dim}"


class QueryAttention(nn.Module):
    """Multi-head attention of learned queries to the valid entries of ragged sets."""

    def __init__(self, dim: int, num_queries: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = as_int("num_heads", num_heads, minimum=1)
        if dim % self.num_heads:
            raise ValueError(f"num_heads={num_heads}: must divide dim={dim}")
        self.query = nn.Parameter(0.02 * torch.randn(num_queries, dim))
        self.key_value = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.key_value.weight, std=dim**-0.5)
        nn.init.zeros_(self.key_value.bias)
        nn.init.zeros_(self.proj.bias)
        with torch.no_grad():
            # Orthogonal, so that means which differ are not pooled to almost equal vectors.
            nn.init.orthogonal_(self.key_value.weight[dim:])
            nn.init.orthogonal_(self.proj.weight)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        valid: Bool[Tensor, "b n"],
        scores: Float[Tensor, "heads n"] | None = None,
    ) -> Float[Tensor, "b q d"]:
        """Pooled vectors, zeros for an empty set; `scores` are added to those of the entries."""
        k, v = rearrange(self.key_value(x), "b n (kv h c) -> kv b h n c", kv=2, h=self.num_heads)
        q = rearrange(self.query, "q (h c) -> h q c", h=self.num_heads).to(k.dtype)
        mask = additive_key_mask(valid, k.dtype)
        if scores is not None:
            mask = mask + scores[None, :, None].to(k.dtype)
        out = F.scaled_dot_product_attention(q.expand(len(x), -1, -1, -1), k, v, attn_mask=mask)
        pooled = self.proj(rearrange(out, "b h q c -> b q (h c)"))
        return cast(Tensor, pooled.masked_fill(~valid.any(dim=1)[:, None, None], 0))

    def extra_repr(self) -> str:
        """Arguments that the submodules do not show."""
        return f"num_queries={len(self.query)}, num_heads={self.num_heads}"


def _flat(
    features: Tensor, valid: Tensor | None, dim: int
) -> tuple[Float[Tensor, "b n d"], Bool[Tensor, "b n"]]:
    """Sets with one batch axis and zeros at padding; an entry of padding if there is no entry."""
    check_floating("features", features)
    shape = tuple(features.shape)
    if len(shape) < 3 or shape[-1] != dim:
        raise ValueError(f"features {shape}: must be [*batch, n, {dim}]")
    check_row_mask("features", features, valid)
    if valid is None:
        valid = everything_valid(features)
    rows, present = zero_invalid(features, valid).flatten(0, -3), valid.flatten(0, -2)
    if shape[-2] == 0:  # attention needs a key
        rows, present = F.pad(rows, (0, 0, 0, 1)), F.pad(present, (0, 1))
    return rows, present
