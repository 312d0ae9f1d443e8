"""Pre-norm transformer block with key masks and rotary positions.

A key mask is additive: 0 for a key, -inf for padding.
"""

from typing import cast

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from jepakit.nn.positions import rotate

Features = Float[Tensor, "b n d"]
KeyMask = Float[Tensor, "b 1 1 n"]
Rotary = Float[Tensor, "b n head_dim"]


class Attention(nn.Module):
    """Multi-head self-attention with optional rotary positions, on torch's fused kernels."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: Features, mask: KeyMask | None, rotary: Rotary | None, first: int = 0
    ) -> Float[Tensor, "b m d"]:
        """Features of the entries from `first` on, which attend to all entries."""
        qkv = rearrange(self.qkv(x), "b n (qkv h d) -> qkv b h n d", qkv=3, h=self.num_heads)
        q, k, v = qkv.unbind(0)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        if first > 0:
            q = q[:, :, first:]
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return cast(Tensor, self.proj(rearrange(heads, "b h n d -> b n (h d)")))


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


class Block(nn.Module):
    """Attention and a two-layer MLP, each behind a layer norm and on a residual branch."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Features, mask: KeyMask | None, rotary: Rotary | None, first: int = 0
    ) -> Float[Tensor, "b m d"]:
        """The block's output for the entries from `first` on."""
        attended = self.attn(self.norm1(x), mask, rotary, first)
        if first > 0:
            x = x[:, first:]
        x = x + self.drop_path(attended)
        return cast(Tensor, x + self.drop_path(self.mlp(self.norm2(x))))
