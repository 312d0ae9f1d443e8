"""Sums, gathers and broadcasts over the ranks of a process group, with gradients.

One convention: the value on every rank is that of one process on the joined batch, and the gradient
on every rank is this rank's part of that process's gradient times the number of ranks, since
`DistributedDataParallel` divides the sum of the gradients by that number.

Two ranks, a model with one weight `w = 3`, and the loss `sum(w * x) / n`: rank 0 holds
`x = [1, 2]`, rank 1 holds `x = [6]`. One process on the joined batch has the loss 3 * 9 / 3 = 9 and
the gradient 9 / 3 = 3.

    on rank 0:  total = sum_over_ranks(w * 1 + w * 2)    value  9 + 18 = 27, gradient 2 * 3 =  6
    on rank 1:  total = sum_over_ranks(w * 6)            value 27,           gradient 2 * 6 = 12
    on both:    loss  = total / 3                        value  9,           gradient 2 and 4
    DDP:        (2 + 4) / 2 = 3

A mean of the ranks' own means would give (1.5 + 6) / 2 = 3.75 instead.

Without a group (None) every function returns what a group of this rank alone would give.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


def sum_over_ranks(local: Tensor, process_group: ProcessGroup | None) -> Tensor:
    """Sum over all ranks, with a gradient for this rank's part, times the number of ranks.

    What is computed from the sum must be computed on every rank alike. The backward has no
    collective: each rank has the same gradient of the loss in the sum already.
    """
    if process_group is None:
        return local
    total = local.detach().clone()
    dist.all_reduce(total, group=process_group)
    # The bracket is exactly 0 and only carries the gradient.
    return total + dist.get_world_size(process_group) * (local - local.detach())


def gather_scalars(own: Tensor, process_group: ProcessGroup | None) -> Tensor:
    """One number of each rank, in rank order: `[ranks]`. No gradient, no host synchronisation."""
    if process_group is None:
        return own.reshape(1)
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size(process_group))]
    dist.all_gather(parts, own, group=process_group)
    return torch.stack(parts).reshape(-1)


def broadcast_from_first(tensor: Tensor, process_group: ProcessGroup | None) -> Tensor:
    """Overwrite `tensor` on every rank with that of the group's first rank, and return it.

    For random numbers: generators of ranks may differ, and the default ones do.
    """
    if process_group is not None:
        # `src` is a rank of the whole job, also where the group is a part of it.
        dist.broadcast(tensor, dist.get_global_rank(process_group, 0), group=process_group)
    return tensor


def row_counts(rows: Tensor, process_group: ProcessGroup | None) -> list[int]:
    """Number of rows of each rank. Shapes depend on it, so a group costs a host synchronisation."""
    if process_group is None:
        return [len(rows)]
    own = torch.tensor(len(rows), device=rows.device)
    return [int(count) for count in gather_scalars(own, process_group).tolist()]


def rows_before(counts: list[int], process_group: ProcessGroup | None) -> int:
    """Index of this rank's first row among the gathered rows."""
    return 0 if process_group is None else sum(counts[: dist.get_rank(process_group)])


def gather_rows(rows: Tensor, counts: list[int], process_group: ProcessGroup | None) -> Tensor:
    """Rows of all ranks in rank order; `counts` come from `row_counts`.

    The backward sums the gradients of all ranks, so every rank must go backward. Bool rows come
    back as bool.
    """
    if process_group is None:
        return rows
    if rows.dtype == torch.bool:  # not every backend sends bools
        return gather_rows(rows.to(torch.uint8), counts, process_group).bool()
    joined: Tensor = _GatherRows.apply(rows, counts, process_group)
    return joined


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int], process_group: ProcessGroup) -> Tensor:
        ctx.counts, ctx.process_group = counts, process_group
        # `all_gather` requires equal shapes, so every rank sends as many rows as the largest has.
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, group=process_group)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad, group=ctx.process_group)
        start = rows_before(ctx.counts, ctx.process_group)
        return grad[start : start + ctx.counts[dist.get_rank(ctx.process_group)]], None, None
