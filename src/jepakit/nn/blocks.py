"""`Block`: a pre-norm transformer block with key masks and rotary positions."""

import math
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, cast

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from jepakit._checks import (
    as_bool,
    as_choice,
    as_fraction,
    as_int,
    as_number,
    check_floating,
    check_weight_dtype,
)
from jepakit.nn.positions import rotate_adjacent, rotate_halves

__all__ = ["Block"]

Features = Float[Tensor, "b n d"]
KeyMask = Float[Tensor, "#b 1 #m n"]
KeyMaskWithCache = Float[Tensor, "#b 1 #m keys"]
Rotary = Float[Tensor, "#b n width"]
RotaryPairs = Literal["halves", "adjacent"]


class Block(nn.Module):
    r"""Multi-head attention and a two-layer MLP, each behind a norm and on a residual branch.

    $$x' = x + \gamma_1\,\mathrm{attn}(\mathrm{norm}_1(x)), \qquad
        y = x' + \gamma_2\,\mathrm{mlp}(\mathrm{norm}_2(x'))$$

    The block of `TokenViT` and `MaskedPredictor`. Attention runs on torch's fused kernels.

    Args:
        dim: Width of the features.
        num_heads: Attention heads; must divide `dim`.
        mlp_ratio: Hidden width of the MLP as a multiple of `dim`, rounded down.
        drop_path: Probability, below 1, that a residual branch of a sample is dropped in training.
        layer_scale: Initial value of the learned factors $\gamma$ of both branches, one for each
            feature; None for none.
        rotary_pairs: The features of a head that a rotary table turns together: `"halves"`, i and
            i + d / 2, or `"adjacent"`, 2i and 2i + 1.

    Raises:
        ValueError: If `num_heads` does not divide `dim`; in the call, if `x` or `rotary` have
            another shape.
        TypeError: In the call, if `x` has another dtype than the weights.

    Example:
        >>> import torch
        >>> from jepakit.nn import Block
        >>> block = Block(64, num_heads=4)
        >>> x = torch.randn(2, 10, 64)
        >>> block(x).shape
        torch.Size([2, 10, 64])
        >>> padding = torch.zeros(2, 1, 1, 10)
        >>> padding[0, ..., 7:] = -torch.inf  # three entries of the first sample are padding
        >>> block(x, padding).shape
        torch.Size([2, 10, 64])

    Source:
        Dosovitskiy et al., ViT (arXiv:2010.11929); names and defaults of timm's `Block`, with an
        epsilon of 1e-6 in the norms. Differences: rotary positions, and no dropout.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        rotary_pairs: RotaryPairs = "halves",
    ) -> None:
        super().__init__()
        dim = as_int("dim", dim, minimum=1)
        num_heads = as_int("num_heads", num_heads, minimum=1)
        hidden = int(dim * as_number("mlp_ratio", mlp_ratio, positive=True))
        if dim % num_heads:
            raise ValueError(f"num_heads={num_heads}: must divide dim={dim}")
        if hidden < 1:
            raise ValueError(f"mlp_ratio={mlp_ratio}: must leave the MLP at least one hidden unit")
        as_int(f"mlp_ratio={mlp_ratio}, the hidden width", hidden, maximum=2**31)
        rotary_pairs = as_choice("rotary_pairs", rotary_pairs, ("halves", "adjacent"))
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, rotary_pairs)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        layers = {"fc1": nn.Linear(dim, hidden), "act": nn.GELU(), "fc2": nn.Linear(hidden, dim)}
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.ls1: nn.Module = nn.Identity()
        self.ls2: nn.Module = nn.Identity()
        if layer_scale is not None:
            value = as_number("layer_scale", layer_scale)
            self.ls1, self.ls2 = LayerScale(dim, value), LayerScale(dim, value)
        self.drop_path = DropPath(as_fraction("drop_path", drop_path, open_high=True))
        self.grad_checkpointing = False

    def forward(
        self,
        x: Features,
        key_mask: KeyMask | None = None,
        rotary: Rotary | None = None,
        first: int = 0,
    ) -> Float[Tensor, "b m d"]:
        """The block's output for the entries from `first` on, which attend to all entries.

        Args:
            x: Features of all entries.
            key_mask: Added to the attention scores of each key: 0 for a key that takes part, -inf
                for padding; one row for all entries from `first` on, or one for each. At least one
                key of a row must take part.
            rotary: Cosines of the angles by which the pairs of a head turn at each entry, then
                their sines: one for each pair with `rotary_pairs="halves"`, one for each feature
                with `"adjacent"`. None for no rotary positions.
            first: Number of entries in front whose output is not needed.
        """
        self._check(x, rotary)
        if self.grad_checkpointing and torch.is_grad_enabled():
            out: Any = checkpoint(self._run, x, key_mask, rotary, first, use_reentrant=False)
            return cast(Tensor, out)
        return self._run(x, key_mask, rotary, first)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """With `enable`, compute the block again in the backward pass and keep no activations."""
        self.grad_checkpointing = as_bool("enable", enable)

    def _check(self, x: Tensor, rotary: Tensor | None) -> None:
        check_floating("x", x)
        dim, shape = self.attn.proj.in_features, tuple(x.shape)
        if len(shape) != 3 or shape[2] != dim:
            raise ValueError(f"x {shape}: must be [batch, n, {dim}], as wide as the block's dim")
        check_weight_dtype("x", x, self.attn.qkv)  # norms may be wider than the rest
        if rotary is None:
            return
        check_floating("rotary", rotary)
        head_dim = dim // self.attn.num_heads
        width = head_dim if self.attn.rotary_pairs == "halves" else 2 * head_dim
        sizes = tuple(rotary.shape)
        if len(sizes) != 3 or sizes[0] not in (1, shape[0]) or sizes[1:] != (shape[1], width):
            raise ValueError(
                f"rotary {sizes}: must be [1 or {shape[0]}, {shape[1]}, {width}], cosines and "
                f"sines for each entry of x {shape}"
            )

    def _run(
        self, x: Features, key_mask: KeyMask | None, rotary: Rotary | None, first: int
    ) -> Float[Tensor, "b m d"]:
        attended = self.attn(self.norm1(x), key_mask, rotary, first)
        return self._add_branches(x[:, first:] if first > 0 else x, attended)

    def _add_branches(self, x: Features, attended: Features) -> Features:
        """Add the output of the attention, then that of the MLP."""
        x = x + self.drop_path(self.ls1(attended))
        return cast(Tensor, x + self.drop_path(self.ls2(self.mlp(self.norm2(x)))))


class Attention(nn.Module):
    """Multi-head self-attention with optional rotary positions."""

    def __init__(self, dim: int, num_heads: int, rotary_pairs: RotaryPairs = "halves") -> None:
        super().__init__()
        self.num_heads = num_heads
        self.rotary_pairs = rotary_pairs
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: Features, key_mask: KeyMask | None, rotary: Rotary | None, first: int = 0
    ) -> Float[Tensor, "b m d"]:
        """Features of the entries from `first` on, which attend to all entries."""
        q, k, v = self.project(x, rotary)
        if first > 0:
            q = q[:, :, first:]
        return self.attend(q, k, v, key_mask)

    def project(self, x: Features, rotary: Rotary | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `[b h n head_dim]`, the first two rotated."""
        qkv = rearrange(self.qkv(x), "b n (qkv h d) -> qkv b h n d", qkv=3, h=self.num_heads)
        q, k, v = qkv.unbind(0)
        if rotary is not None:
            rotate = rotate_halves if self.rotary_pairs == "halves" else rotate_adjacent
            q, k = rotate(q, rotary), rotate(k, rotary)
        return q, k, v

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, key_mask: KeyMaskWithCache | None
    ) -> Float[Tensor, "b m d"]:
        """Features of the queries, which attend to all keys."""
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask)
        return cast(Tensor, self.proj(rearrange(heads, "b h n d -> b n (h d)")))

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, rotary_pairs={self.rotary_pairs!r}"


class LayerScale(nn.Module):
    """A learned factor for each feature."""

    def __init__(self, dim: int, value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), value))

    def forward(self, x: Features) -> Features:
        return x * self.gamma


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch of whole samples in training, scales the others."""

    def __init__(self, prob: float) -> None:
        super().__init__()
        self.prob = prob

    def forward(self, x: Features) -> Features:
        if self.prob == 0.0 or not self.training:
            return x
        keep = 1.0 - self.prob
        return x * (x.new_empty(len(x), 1, 1).bernoulli_(keep) / keep)

    def extra_repr(self) -> str:
        return f"prob={self.prob}"


def drop_path_rates(drop_path: float, depth: int) -> list[float]:
    """Rates of the blocks, rising linearly from 0 at the first one."""
    drop_path = as_fraction("drop_path", drop_path, open_high=True)
    if drop_path > 0 and depth == 1:
        raise ValueError(f"drop_path={drop_path}: must be 0 with depth=1")
    return [drop_path * i / max(1, depth - 1) for i in range(depth)]


class KeysValues(NamedTuple):
    """Keys, rotated already, and values of entries that later ones attend to."""

    k: Float[Tensor, "b h n head_dim"]
    v: Float[Tensor, "b h n head_dim"]


def run_after(
    block: Block,
    x: Features,
    cache: list[KeysValues],
    key_mask: KeyMaskWithCache | None,
    rotary: Rotary | None,
) -> tuple[Features, KeysValues]:
    """A block's output for entries that attend to cached ones and to themselves.

    A cache of fewer samples is shared: with 2 samples of 3 candidates each in `x`, its first sample
    serves the first 3. The copies last for this call. Also returns the keys and values of `x`.
    """
    q, k, v = block.attn.project(block.norm1(x), rotary)
    new = KeysValues(k, v)
    parts = [
        KeysValues(*(each.repeat_interleave(len(x) // len(each), dim=0) for each in part))
        if len(part.k) != len(x)
        else part
        for part in [*cache, new]
    ]
    keys, values = (torch.cat(each, dim=2) for each in zip(*parts, strict=True))
    return block._add_branches(x, block.attn.attend(q, keys, values, key_mask)), new


def init_linear(module: nn.Module) -> None:
    """The usual initialisation of a transformer's linear layers: a std of 0.02, biases of 0."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            nn.init.zeros_(part.bias)


def init_predictor(module: nn.Module, blocks: Iterable[nn.Module]) -> None:
    """I-JEPA's initialisation of linear layers: a std of 0.02, less in residual projections."""
    init_linear(module)
    with torch.no_grad():
        for layer, part in enumerate(blocks, start=1):
            block = cast(Block, part)
            block.attn.proj.weight.div_(math.sqrt(2 * layer))
            cast(nn.Linear, block.mlp[-1]).weight.div_(math.sqrt(2 * layer))
