"""Views of one sample agree."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributed import ProcessGroup

from jepakit._checks import check_int, check_tensor, type_name
from jepakit._precision import float32_or_wider, full_precision
from jepakit._rows import check_rows
from jepakit.losses._reduction import reduce_masked

__all__ = ["check_views", "invariance_loss"]


def invariance_loss(
    views: Float[Tensor, "v *batch d"],
    valid: Bool[Tensor, "v *batch"] | None = None,
    *,
    num_global_views: int | None = None,
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    r"""Squared distance of every view to the centre of its sample.

    $$L = \frac{1}{V n d} \sum_{v=1}^{V} \sum_{i=1}^{n} \|x_{vi} - c_i\|^2, \qquad
        c_i = \frac{1}{V_g} \sum_{v=1}^{V_g} x_{vi}$$

    Its minimum holds every collapse: add a regulariser. The gradient flows through the centre too.

    Args:
        views: Features of $V$ views, `[v b d]` or `[v b n d]`, the global views first.
        valid: True where a view's vector counts. A centre is the mean of its valid views, and
            vectors without one do not count. All if None.
        num_global_views: $V_g$, how many views make the centre. All if None.
        process_group: Take the mean over all ranks of this group: each rank returns the global
            mean, with a gradient scaled so that DDP's averaging gives the gradient of one big
            batch. Every rank must call.

    Raises:
        TypeError: If `views` is not floating point, `valid` not bool, or `process_group` not a
            process group.
        ValueError: If shapes do not fit (nothing is broadcast), there are fewer than 2 views, or
            `num_global_views` is not between 1 and $V$.

    Example:
        >>> import torch
        >>> invariance_loss(torch.tensor([[[1.0]], [[3.0]]]))  # both 1 away from their centre, 2
        tensor(1.)

    Source:
        The prediction term of LeJEPA (arXiv:2511.08544). With two views and both in the centre it
        is a quarter of the mean squared difference that `vicreg` takes.
    """
    check_views(views, num_global_views)
    check_rows("views", views, valid, process_group)
    if valid is None:
        valid = torch.ones(views.shape[:-1], dtype=torch.bool, device=views.device)
    with full_precision(views):
        x = float32_or_wider(views).masked_fill(~valid.unsqueeze(-1), 0)
        counts = valid[:num_global_views].sum(dim=0)
        centre = x[:num_global_views].sum(dim=0) / counts.clamp(min=1).unsqueeze(-1)
        present = valid & (counts > 0)
        squares = (x - centre).masked_fill(~present.unsqueeze(-1), 0).square()
        return reduce_masked(
            squares, present, "mean", process_group, values_per_token=views.shape[-1]
        )


def check_views(views: Tensor, num_global_views: int | None) -> None:
    """Raise unless there are 2 views or more, and `num_global_views` of them."""
    if isinstance(views, list | tuple):
        kind = type_name(views)
        raise TypeError(f"views: must be a torch.Tensor, got {kind}; torch.stack makes one of it")
    check_tensor("views", views)
    if views.dim() < 3 or len(views) < 2:
        raise ValueError(
            f"views {tuple(views.shape)}: must have the shape [v, *batch, d] with at least 2 views"
        )
    if num_global_views is not None:
        check_int("num_global_views", num_global_views, minimum=1)
        if num_global_views > len(views):
            raise ValueError(
                f"num_global_views={num_global_views}: must be at most the number of views, "
                f"{len(views)}"
            )
