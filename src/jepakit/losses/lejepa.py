"""LeJEPA: views agree and are an isotropic Gaussian; no teacher."""

import warnings
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributed import ProcessGroup

from jepakit._checks import check_choice, check_fraction, check_number
from jepakit._precision import full_precision
from jepakit._rows import to_rows
from jepakit.losses.invariance import invariance_loss
from jepakit.losses.sigreg import check_sigreg, draw_slices, slice_statistic

__all__ = ["lejepa_loss"]


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
    r"""Invariance of the views and SIGReg of each view.

    $$L_\mathrm{convex} = (1 - \lambda)\, I + \frac{\lambda}{V} \sum_{v=1}^{V} T_v, \qquad
        L_\mathrm{additive} = I + \frac{\lambda}{V} \sum_{v=1}^{V} T_v$$

    with $I$ = `invariance_loss` and $T_v$ = `sigreg` of view $v$, all views along the same
    directions. Views of one sample are not independent, so they are never tested as one batch.

    Args:
        views: Projected features of $V$ views, `[v b d]` or `[v b n d]`, the global views first.
            More views than samples are taken for exchanged axes: a warning says so.
        valid: True where a view's vector counts, in both terms. All if None.
        weight: $\lambda$, of the statistic: in [0, 1] if convex, else not below 0.
        mode: `"convex"` as in the paper, or `"additive"`.
        num_global_views: As in `invariance_loss`.
        num_slices: As in `sigreg`.
        num_points: As in `sigreg`.
        t_max: As in `sigreg`.
        generator: As in `sigreg`.
        process_group: As in `sigreg`, for both terms.

    Raises:
        TypeError: As in `sigreg`.
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
        statistic instead; then $\lambda$ means something else, so it has a name of its own here.
        The paper's centre is the mean of the global views; its minimal example takes all of them.
    """
    check_choice("mode", mode, ("convex", "additive"))
    if mode == "convex":
        check_fraction("weight", weight)
    else:
        check_number("weight", weight, minimum=0)
    check_sigreg(num_slices, num_points, t_max, generator)
    invariance = invariance_loss(
        views, valid, num_global_views=num_global_views, process_group=process_group
    )
    few = process_group is None and len(views) > views.shape[1:-1].numel()
    if few and not torch.compiler.is_compiling():
        warnings.warn(
            f"views {tuple(views.shape)}: more views than samples; if these axes are "
            "[batch, views, d], exchange the first two",
            stacklevel=2,
        )
    with full_precision(views):
        rows = [
            to_rows(view, None if valid is None else valid[number])
            for number, view in enumerate(views)
        ]
        slices = draw_slices(rows[0].values, num_slices, generator, process_group)
        statistics = [
            slice_statistic(*each, slices, num_points, t_max, process_group) for each in rows
        ]
        statistic = torch.stack(statistics).mean()
    kept = 1 - weight if mode == "convex" else 1.0
    return kept * invariance + weight * statistic
