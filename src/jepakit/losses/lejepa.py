"""LeJEPA without a teacher: views agree (invariance) and are isotropic Gaussian (SIGReg)."""

import warnings
from collections.abc import Iterator
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from jepakit._checks import as_choice, as_fraction, as_int, as_number, check_generator, check_rows
from jepakit._distributed import broadcast_from_first, sum_over_ranks
from jepakit._precision import full_precision
from jepakit._rows import Rows, to_rows
from jepakit.losses.regularizers import invariance_loss

__all__ = ["lejepa_loss", "sigreg"]

# Projections are computed in blocks of rows x slices. About eight tensors of a block's size are
# alive at once: 64 MB in float32. The result does not depend on the block size.
_BLOCK_ELEMENTS = 2**21
_BLOCK_ROWS = 2**13


def sigreg(
    features: Float[Tensor, "*batch d"],
    valid: Bool[Tensor, "*batch"] | None = None,
    *,
    num_slices: int = 1024,
    num_points: int = 17,
    t_max: float = 3.0,
    generator: torch.Generator | None = None,
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    r"""Mean Epps-Pulley statistic of random projections against the standard normal.

    $$T = \frac{1}{S} \sum_{s=1}^{S} n \int_{-t_\mathrm{max}}^{t_\mathrm{max}}
        \Big| \frac{1}{n} \sum_{i=1}^{n} e^{\mathrm{i} t\, a_s \cdot x_i} - e^{-t^2/2} \Big|^2
        e^{-t^2/2}\, dt$$

    with unit vectors $a_s$ drawn anew in each call. Samples of N(0, I) give about 1.05 at the
    default `t_max`, whatever their number; a full collapse to 0 gives 0.40 n. The projections are
    neither centred nor scaled, since mean 0 and variance 1 are part of the test. The gradient
    moves equal samples alike: exactly constant features go to 0 together, and the smallest
    difference between them grows.

    Memory is linear in the rows: the backward computes the projections again, block by block.
    Computed in float32. There is a first derivative only.

    Args:
        features: `[b d]`, or `[b n d]` with every valid token as a sample. The test assumes
            independent samples; views of one image are not, so give each view its own call, as
            `lejepa_loss` does.
        valid: True where a row counts. All rows if None. With none the statistic is 0.
        num_slices: $S$, the number of directions.
        num_points: Points of the trapezoid rule on $[0, t_\mathrm{max}]$, both ends included; the
            integrand is even. At least 2.
        t_max: End of the integral, in 1 / units of the features; above 0.
        generator: Source of the directions, on the CPU or the features' device. The default
            generator of the features' device if None.
        process_group: Test the joined rows of all ranks of this group, with value and gradient as
            in `masked_mse`. The directions are those of the group's first rank.

    Raises:
        ValueError: If shapes do not fit, or there are no rows and no `process_group`.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(1000, 16, generator=generator)
        >>> bool(sigreg(x, generator=generator) < 2)
        True
        >>> round(sigreg(0 * x, generator=generator).item())  # collapsed
        402

    Source:
        LeJEPA (arXiv:2511.08544). The published minimal example integrates from 0 to 3 and doubles,
        as here; the paper's listing spans -5 to 5 with the same 17 points. The statistic carries
        the factor n, as both do. Difference: slices come from the first rank instead of a seed that
        ranks must agree on.
    """
    check_rows("features", features, valid, process_group)
    return _mean_statistic(
        [(features, valid)], num_slices, num_points, t_max, generator, process_group
    )


def lejepa_loss(
    views: Float[Tensor, "v *batch d"],
    valid: Bool[Tensor, "v *batch"] | None = None,
    *,
    weight: float = 0.05,
    mode: Literal["convex", "additive"] = "convex",
    num_global_views: int | None = None,
    num_slices: int = 1024,
    num_points: int = 17,
    t_max: float = 3.0,
    generator: torch.Generator | None = None,
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    r"""Invariance of the views plus SIGReg of each view.

    $$L_\mathrm{convex} = (1 - \lambda)\, I + \frac{\lambda}{V} \sum_{v=1}^{V} T_v, \qquad
        L_\mathrm{additive} = I + \frac{\lambda}{V} \sum_{v=1}^{V} T_v$$

    with $I$ = `invariance_loss` and $T_v$ = `sigreg` of view $v$, all views along the same
    directions. Views of one sample are not independent, so they are never tested as one batch.

    Args:
        views: Projected features of $V$ views, `[v b d]` or `[v b n d]`, the global views first.
            More views than samples give a warning: the axes may be exchanged.
        valid: True where a view's vector counts, in both terms. All if None.
        weight: $\lambda$, of the statistic: in [0, 1] if convex, else at least 0.
        mode: `"convex"` as in the paper, or `"additive"`.
        num_global_views: As in `invariance_loss`.
        num_slices, num_points, t_max, generator, process_group: As in `sigreg`.

    Raises:
        ValueError: As in `sigreg` and `invariance_loss`, or if `weight` does not fit `mode`.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> views = torch.randn(2, 256, 8, generator=generator)
        >>> agreeing = lejepa_loss(views[:1].expand(2, -1, -1), generator=generator)
        >>> collapsed = lejepa_loss(0 * views, generator=generator)
        >>> bool(agreeing < lejepa_loss(views, generator=generator) < collapsed)
        True

    Source:
        LeJEPA (arXiv:2511.08544), whose text and code weigh as `mode="convex"`. Some code adds the
        statistic instead, with another meaning of $\lambda$, hence `mode`. The paper's centre is
        the mean of the global views; its minimal example takes all of them.
    """
    as_choice("mode", mode, ("convex", "additive"))
    if mode == "convex":
        weight = as_fraction("weight", weight)
    else:
        weight = as_number("weight", weight, minimum=0)
    invariance = invariance_loss(
        views, valid, num_global_views=num_global_views, process_group=process_group
    )
    few_samples = process_group is None and len(views) > views.shape[1:-1].numel()
    if few_samples and not torch.compiler.is_compiling():
        warnings.warn(
            f"views {tuple(views.shape)}: more views than samples; if these axes are "
            "[batch, views, d], exchange the first two",
            stacklevel=2,
        )
    pairs = [(view, None if valid is None else valid[i]) for i, view in enumerate(views)]
    statistic = _mean_statistic(pairs, num_slices, num_points, t_max, generator, process_group)
    invariance_weight = 1 - weight if mode == "convex" else 1.0
    return invariance_weight * invariance + weight * statistic


def _mean_statistic(
    views: list[tuple[Tensor, Tensor | None]],
    num_slices: int,
    num_points: int,
    t_max: float,
    generator: torch.Generator | None,
    process_group: ProcessGroup | None,
) -> Tensor:
    """Mean over views (features and `valid`) of the statistic, all along the same directions."""
    num_slices = as_int("num_slices", num_slices, minimum=1)
    num_points = as_int("num_points", num_points, minimum=2)
    t_max = as_number("t_max", t_max, positive=True)
    check_generator(generator)
    with full_precision(views[0][0]):
        rows = [to_rows(features, valid) for features, valid in views]
        slices = _draw_slices(rows[0].values, num_slices, generator, process_group)
        statistics = [_epps_pulley(each, slices, num_points, t_max, process_group) for each in rows]
        return torch.stack(statistics).mean()


def _draw_slices(
    rows: Tensor,
    num_slices: int,
    generator: torch.Generator | None,
    process_group: ProcessGroup | None,
) -> Tensor:
    """Directions as unit columns `[d num_slices]`, the same on every rank."""
    device = rows.device if generator is None else generator.device
    # Always drawn in float32, so that they do not depend on the dtype of the features.
    directions = torch.randn(
        rows.shape[1], num_slices, generator=generator, dtype=torch.float32, device=device
    )
    directions = broadcast_from_first(directions.to(rows.device), process_group).to(rows.dtype)
    lengths: Tensor = torch.linalg.vector_norm(directions, dim=0, keepdim=True)
    return directions / lengths.clamp(min=1e-12)


def _epps_pulley(
    rows: Rows, slices: Tensor, num_points: int, t_max: float, process_group: ProcessGroup | None
) -> Tensor:
    """Mean over slices of the Epps-Pulley statistic of the rows of all ranks."""
    step = t_max / (num_points - 1)
    weights = rows.valid.squeeze(1).to(rows.values.dtype)
    # At t = 0 both characteristic functions are 1: the point adds nothing and is left out.
    own = _CharacteristicSums.apply(rows.values, weights, slices, num_points - 1, step)
    sums = sum_over_ranks(own, process_group)
    count = sum_over_ranks(weights.sum(), process_group)
    t = step * torch.arange(1, num_points, device=sums.device, dtype=sums.dtype)
    normal = torch.exp(-t.square() / 2).unsqueeze(1)  # both a characteristic function and a weight
    real, imaginary = (sums / count.clamp(min=1)).unbind()
    gaps = (real - normal).square() + imaginary.square()
    # Trapezoid rule over both signs of t: 2 * step at each inner point, half of that at the end.
    areas = torch.full_like(normal, 2 * step)
    areas[-1] = step
    return count * (gaps * normal * areas).sum(dim=0).mean()


class _CharacteristicSums(torch.autograd.Function):
    r"""`[2 points slices]`: $\sum_i w_i \cos(t_k\, x_i \cdot a_s)$, and the same of the sine.

    The points are $t_k = k \cdot \mathrm{step}$ for k = 1, ..., `num_points`. No graph of the
    projections is kept: the backward computes them again. No gradient for weights and slices.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weights: Tensor, slices: Tensor, num_points: int, step: float
    ) -> Tensor:
        ctx.save_for_backward(rows, weights, slices)
        ctx.num_points, ctx.step = num_points, step
        sums = rows.new_zeros(2, num_points, slices.shape[1])
        with full_precision(rows):
            for i, s in _blocks(rows, slices):
                w = weights[i].unsqueeze(0)
                for k, cos, sin in _cos_and_sin(rows[i] @ slices[:, s], num_points, step):
                    sums[0, k, s] += (w @ cos).squeeze(0)
                    sums[1, k, s] += (w @ sin).squeeze(0)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        rows, weights, slices = ctx.saved_tensors
        # d cos(t p) / dp = -t sin(t p), d sin(t p) / dp = t cos(t p)
        t = ctx.step * torch.arange(1, ctx.num_points + 1, device=rows.device, dtype=rows.dtype)
        grad = grads[0] * t.unsqueeze(1)
        rows_grad = torch.zeros_like(rows)
        with full_precision(rows):
            for i, s in _blocks(rows, slices):
                projections = rows[i] @ slices[:, s]
                slope = torch.zeros_like(projections)
                for k, cos, sin in _cos_and_sin(projections, ctx.num_points, ctx.step):
                    slope.addcmul_(cos, grad[1, k, s]).addcmul_(sin, grad[0, k, s], value=-1)
                rows_grad[i] += (slope * weights[i].unsqueeze(1)) @ slices[:, s].T
        return rows_grad, None, None, None, None


def _blocks(rows: Tensor, slices: Tensor) -> Iterator[tuple[slice, slice]]:
    """Ranges of rows and of slices that together cover all projections once."""
    height = max(1, min(len(rows), _BLOCK_ROWS))
    width = max(1, _BLOCK_ELEMENTS // height)
    for top in range(0, len(rows), height):
        for left in range(0, slices.shape[1], width):
            yield slice(top, top + height), slice(left, left + width)


def _cos_and_sin(
    projections: Tensor, num_points: int, step: float
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Cosine and sine of `t_k * projections` for each k, from one cosine and one sine.

    Each point follows from the one before by the addition theorems: with `a = step * projection`,
    `cos(3a) = cos(2a) cos(a) - sin(2a) sin(a)` and `sin(3a) = sin(2a) cos(a) + cos(2a) sin(a)`.
    """
    angle = projections * step
    step_cos, step_sin = angle.cos(), angle.sin()
    cos, sin = step_cos, step_sin
    for k in range(num_points):
        if k:
            cos, sin = (
                (cos * step_cos).addcmul_(sin, step_sin, value=-1),
                (sin * step_cos).addcmul_(cos, step_sin),
            )
        yield k, cos, sin
