"""Sums of cosines and sines of projections, in memory that is linear in the rows."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from jepakit._precision import full_precision

__all__ = ["characteristic_sums"]

# Elements of one block of projections, rows x slices. Some eight such blocks are alive at once:
# 64 MB in float32, of which the result does not depend.
_BLOCK = 2**21
_BLOCK_ROWS = 2**13


def characteristic_sums(
    rows: Tensor, weights: Tensor, slices: Tensor, num_points: int, step: float
) -> Tensor:
    r"""`[2 points slices]`: $\sum_i w_i \cos(t_k\, x_i \cdot a_s)$, and the same of the sine.

    The points are $t_k = k \cdot \mathrm{step}$ for k = 1, ..., `num_points`. No graph of the
    projections is kept: the backward computes them again. No gradient for weights and slices.
    """
    sums: Tensor = _CharacteristicSums.apply(rows, weights, slices, num_points, step)
    return sums


class _CharacteristicSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weights: Tensor, slices: Tensor, num_points: int, step: float
    ) -> Tensor:
        ctx.save_for_backward(rows, weights, slices)
        ctx.num_points, ctx.step = num_points, step
        sums = rows.new_zeros(2, num_points, slices.shape[1])
        with full_precision(rows):
            for these, some in _blocks(rows, slices):
                w = weights[these].unsqueeze(0)
                for k, cos, sin in _angles(rows[these] @ slices[:, some], num_points, step):
                    sums[0, k, some] += (w @ cos).squeeze(0)
                    sums[1, k, some] += (w @ sin).squeeze(0)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        rows, weights, slices = ctx.saved_tensors
        # d cos(t p) / dp = -t sin(t p), d sin(t p) / dp = t cos(t p)
        t = ctx.step * torch.arange(1, ctx.num_points + 1, device=rows.device, dtype=rows.dtype)
        grad = grads[0] * t.unsqueeze(1)
        result = torch.zeros_like(rows)
        with full_precision(rows):
            for these, some in _blocks(rows, slices):
                projections = rows[these] @ slices[:, some]
                slope = torch.zeros_like(projections)
                for k, cos, sin in _angles(projections, ctx.num_points, ctx.step):
                    slope.addcmul_(cos, grad[1, k, some]).addcmul_(sin, grad[0, k, some], value=-1)
                result[these] += (slope * weights[these].unsqueeze(1)) @ slices[:, some].T
        return result, None, None, None, None


def _blocks(rows: Tensor, slices: Tensor) -> Iterator[tuple[slice, slice]]:
    height = max(1, min(len(rows), _BLOCK_ROWS))
    width = max(1, _BLOCK // height)
    for top in range(0, len(rows), height):
        for left in range(0, slices.shape[1], width):
            yield slice(top, top + height), slice(left, left + width)


def _angles(
    projections: Tensor, num_points: int, step: float
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Cosine and sine at each point, turned by one step at a time: two calls of trigonometry."""
    angle = projections * step
    turn_cos, turn_sin = angle.cos(), angle.sin()
    cos, sin = turn_cos, turn_sin
    for k in range(num_points):
        if k:
            cos, sin = (
                (cos * turn_cos).addcmul_(sin, turn_sin, value=-1),
                (sin * turn_cos).addcmul_(cos, turn_sin),
            )
        yield k, cos, sin
