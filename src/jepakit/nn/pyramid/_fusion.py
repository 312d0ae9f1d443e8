"""Top-down fusion of pyramid levels, as in a feature pyramid network."""

from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepakit.nn.pyramid._pools import from_field, halved, is_whole, split_axis, spread, to_field
from jepakit.tokens import TokenSet


class TopDown(nn.Module):
    r"""The path of a feature pyramid network from the coarsest level down, on the grid.

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
        in_dim = 2 * dim if kind == "fpn-concat" else dim
        self.laterals = nn.ModuleList(
            nn.Linear(dim if level == num_levels - 1 else in_dim, dim)
            for level in range(num_levels)
        )
        initialise(self.laterals)

    def forward(
        self, features: list[Float[Tensor, "b _ d"]], cells: list[TokenSet]
    ) -> list[Float[Tensor, "b _ d"]]:
        """Fused features of the same cells, finest level first."""
        coarsest = len(features) - 1
        fused = [self.laterals[coarsest](features[coarsest])]
        for level in reversed(range(coarsest)):
            above = self._upsample(fused[0], cells[level + 1], cells[level])
            if self.kind == "fpn-add":
                y = self.laterals[level](features[level]) + above
            else:
                y = self.laterals[level](torch.cat([features[level], above], dim=-1))
            fused.insert(0, y)
        return fused

    def _upsample(
        self, features: Float[Tensor, "b m d"], coarse: TokenSet, fine: TokenSet
    ) -> Float[Tensor, "b n d"]:
        """Features of a coarse level at the cells of the next finer one, zeros where absent."""
        field = to_field(features, coarse)
        if self.upsample == "nearest":
            return from_field(spread(field, fine.grid_size), fine)
        field = interpolate(field, fine.grid_size)
        if not is_whole(coarse):
            # Absent neighbours were interpolated as zeros. Divided by the interpolated validity,
            # the weights of the others sum to 1: 3/4 a and an absent neighbour give a.
            valid = coarse.to_mask().unsqueeze(-1).to(field.dtype)
            weight = interpolate(valid, fine.grid_size)
            field = field / weight.masked_fill(weight == 0, 1)
        return from_field(field, fine)


def interpolate(y: Float[Tensor, "b M d"], grid_size: tuple[int, ...]) -> Float[Tensor, "b N d"]:
    """Linear interpolation between the centres of coarse cells along each axis.

    A fine cell lies a quarter of a coarse cell off the centre of its own, so it takes 3/4 of that
    one and 1/4 of the neighbour on its side. Centres are those of whole windows, also at the
    border: stretching 4 cells over 7, as resizing an image would, moves values.
    """
    cells = split_axis(y, 1, halved(grid_size))
    for axis, side in enumerate(grid_size, start=1):
        count = cells.shape[axis]
        first, last = cells.narrow(axis, 0, 1), cells.narrow(axis, count - 1, 1)
        before = torch.cat([first, cells.narrow(axis, 0, count - 1)], dim=axis)
        after = torch.cat([cells.narrow(axis, 1, count - 1), last], dim=axis)
        own = 0.75 * cells
        pairs = torch.stack([own + 0.25 * before, own + 0.25 * after], dim=axis + 1)
        cells = pairs.flatten(axis, axis + 1).narrow(axis, 0, side)
    return cells.flatten(1, -2)


def initialise(layers: nn.ModuleList) -> None:
    """Give linear layers weights that keep the variance of their input, and no bias."""
    for layer in layers:
        linear = cast(nn.Linear, layer)
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
