"""How losses meet over the ranks of a process group.

One convention for all of them: the value is that of one process on the joined batch, and the
gradient on each rank is its share times the number of ranks, because DDP divides by that number.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["gather_rows", "row_counts", "sum_over_ranks"]


def sum_over_ranks(local: Tensor, process_group: dist.ProcessGroup | None) -> Tensor:
    """The sum over all ranks, whose gradient reaches this rank's part, times the number of ranks.

    Right where what follows is computed alike on every rank, from sums like this one; there is no
    collective in the backward.
    """
    if process_group is None:
        return local
    total = local.detach().clone()
    dist.all_reduce(total, group=process_group)
    # DDP divides the summed gradients by the number of ranks; multiplying here undoes that. The
    # difference is exactly 0.
    return total + dist.get_world_size(process_group) * (local - local.detach())


def row_counts(rows: Tensor, process_group: dist.ProcessGroup) -> list[int]:
    """How many rows each rank has. Shapes depend on it, so it is read back from the device."""
    own = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(own) for _ in range(dist.get_world_size(process_group))]
    dist.all_gather(counts, own, group=process_group)
    return [int(count) for count in torch.cat(counts).tolist()]


def gather_rows(rows: Tensor, counts: list[int], process_group: dist.ProcessGroup) -> Tensor:
    """The rows of all ranks in rank order; the gradients of all ranks are summed, so every rank
    must go backward."""
    joined: Tensor = _GatherRows.apply(rows, counts, process_group)
    return joined


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, counts: list[int], process_group: dist.ProcessGroup
    ) -> Tensor:
        ctx.counts, ctx.process_group = counts, process_group
        # Collectives want equal shapes; counts differ between ranks.
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, group=process_group)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad, group=ctx.process_group)
        rank = dist.get_rank(ctx.process_group)
        start = sum(ctx.counts[:rank])
        return grad[start : start + ctx.counts[rank]], None, None
