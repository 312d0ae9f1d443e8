"""The one place where masked losses check their input and are reduced."""

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from jepakit._checks import check_choice, check_floating, check_process_group
from jepakit._distributed import sum_over_ranks

__all__ = ["Reduction", "check_masked", "reduce_masked"]

Reduction = Literal["mean", "sum", "sample", "none"]

_REDUCTIONS = ("mean", "sum", "sample", "none")


def check_masked(
    pred: Tensor,
    target: Tensor,
    valid: Tensor,
    reduction: str,
    process_group: dist.ProcessGroup | None,
) -> None:
    """Raise unless the arguments of a masked loss fit together; reads no tensor's values."""
    for name, tensor in (("pred", pred), ("target", target)):
        check_floating(name, tensor)
    if not isinstance(valid, Tensor):
        raise TypeError(
            f"valid: must be a bool tensor, got {type(valid).__name__}; pass e.g. tokens.valid"
        )
    if valid.dtype != torch.bool:
        raise TypeError(f"valid: must be a bool tensor, got {valid.dtype}; pass e.g. tokens.valid")
    if pred.dim() < 2:
        raise ValueError(f"pred {tuple(pred.shape)}: must have the shape [*batch, n, d]")
    if target.shape != pred.shape:
        raise ValueError(
            f"target {tuple(target.shape)}: must have the shape of pred {tuple(pred.shape)}; "
            "nothing is broadcast"
        )
    if valid.shape != pred.shape[:-1]:
        raise ValueError(
            f"valid {tuple(valid.shape)}: must have the shape of pred without its last axis, "
            f"{tuple(pred.shape[:-1])}; nothing is broadcast"
        )
    # One rank of several may have no samples: it still takes part in the sums.
    if pred.shape[-1] == 0 or (pred.shape[0] == 0 and process_group is None):
        raise ValueError(
            f"pred {tuple(pred.shape)}: the batch is empty, "
            "must have at least one sample and one feature"
        )
    check_choice("reduction", reduction, _REDUCTIONS)
    if reduction == "sample" and pred.dim() < 3:
        raise ValueError(
            f"reduction='sample': pred {tuple(pred.shape)} has no batch axis, "
            "must have the shape [b, ..., n, d]"
        )
    check_process_group(process_group)
    if process_group is not None and reduction != "mean":
        raise ValueError(
            f"process_group with reduction={reduction!r}: takes effect only with reduction='mean'"
        )


def reduce_masked(
    values: Tensor,
    valid: Tensor,
    reduction: str,
    process_group: dist.ProcessGroup | None,
    *,
    values_per_token: int,
) -> Tensor:
    """Reduce `values`, which are already 0 where not valid.

    Counts are clamped at 1, so that a sum over nothing stays 0 with a graph and finite gradients.
    """
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    if reduction == "sample":
        counts = valid.flatten(1).sum(dim=1)
        return values.flatten(1).sum(dim=1) / (counts.clamp(min=1) * values_per_token)
    total, count = values.sum(), valid.sum()
    if process_group is None:
        return total / (count.clamp(min=1) * values_per_token)

    sums = sum_over_ranks(torch.stack([total, count.to(total.dtype)]), process_group)
    return sums[0] / (sums[1].clamp(min=1) * values_per_token)
