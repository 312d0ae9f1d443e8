"""`TopDown`: coarse levels tell finer ones what they see."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepakit.nn.pyramid.level import Level
from jepakit.nn.pyramid.windows import interpolate, spread
from jepakit.tokens import TokenSet, put_tokens, take_tokens

__all__: list[str] = []


class TopDown(nn.Module):
    r"""A feature pyramid network's path from the coarsest level down, on the grid.

    With lateral maps $A_l$ and upsampling $U$: $y_{L-1} = A_{L-1} x_{L-1}$, then
    $y_l = A_l x_l + U y_{l+1}$ (`"fpn-add"`) or $y_l = A_l [x_l \Vert U y_{l+1}]$ (`"fpn-concat"`).
    """

    def __init__(
        self,
        dim: int,
        num_levels: int,
        kind: Literal["fpn-add", "fpn-concat"],
        upsample: Literal["nearest", "bilinear"],
    ) -> None:
        super().__init__()
        self.kind = kind
        self.upsample = upsample
        wide = 2 * dim if kind == "fpn-concat" else dim
        self.laterals = nn.ModuleList(
            nn.Linear(dim if level == num_levels - 1 else wide, dim) for level in range(num_levels)
        )
        for lateral in self.laterals:
            initialise(lateral)

    def forward(self, levels: list[Level]) -> list[Level]:
        """The same tokens with features that know of the levels above."""
        above: Level | None = None
        fused = []
        for lateral, (x, tokens) in zip(reversed(self.laterals), reversed(levels), strict=True):
            if above is None:
                y = lateral(x)
            elif self.kind == "fpn-add":
                y = lateral(x) + self._seen_from(tokens, above)
            else:
                y = lateral(torch.cat([x, self._seen_from(tokens, above)], dim=-1))
            above = Level(y, tokens)
            fused.append(above)
        return fused[::-1]

    def _seen_from(self, tokens: TokenSet, coarse: Level) -> Float[Tensor, "b n d"]:
        """What a coarse level holds at the tokens of the next finer one, zeros where absent."""
        whole = is_whole(coarse.tokens)
        field = on_grid(coarse.features, coarse.tokens)
        if self.upsample == "nearest":
            field = spread(field, tokens.grid_size)
        else:
            field = interpolate(field, tokens.grid_size)
            if not whole:
                # Neighbours that are absent get no share: what the others hold is scaled up.
                there = coarse.tokens.to_mask().unsqueeze(-1).to(field.dtype)
                share = interpolate(there, tokens.grid_size)
                field = field / share.masked_fill(share == 0, 1)
        return at_tokens(field, tokens)


def is_whole(tokens: TokenSet) -> bool:
    """Whether every position is a token of every sample, as far as the host knows."""
    return not tokens.padded and tokens.shape[-1] == tokens.num_positions


def on_grid(features: Float[Tensor, "b n d"], tokens: TokenSet) -> Float[Tensor, "b N d"]:
    """Features at their cells, zeros elsewhere."""
    return features if is_whole(tokens) else put_tokens(features, tokens)


def at_tokens(field: Float[Tensor, "b N d"], tokens: TokenSet) -> Float[Tensor, "b n d"]:
    """What a field holds at the tokens, zeros where not valid."""
    return field if is_whole(tokens) else take_tokens(field, tokens)


def initialise(linear: nn.Module) -> None:
    """A map that keeps the variance of its input, without a bias at first."""
    if isinstance(linear, nn.Linear):
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
