"""Features as rows: what losses over a whole batch of vectors begin with."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from jepakit._checks import check_floating, check_process_group, check_row_mask
from jepakit._distributed import sum_over_ranks
from jepakit._precision import float32_or_wider

__all__ = ["Rows", "centre", "check_rows", "to_rows"]


class Rows(NamedTuple):
    """Vectors that take part, and how many there are over all ranks."""

    values: Tensor  # [n d], float32 or wider, 0 where not present
    present: Tensor  # [n 1], bool


def check_rows(
    name: str,
    features: Tensor,
    valid: Tensor | None,
    process_group: ProcessGroup | None,
    *,
    minimum: int = 1,
) -> None:
    """Raise unless `features` are `[*batch d]` with `minimum` rows, and `valid` fits them."""
    check_floating(name, features)
    check_process_group(process_group)
    shape = tuple(features.shape)
    if features.dim() < 2 or shape[-1] == 0:
        raise ValueError(f"{name} {shape}: must have the shape [*batch, d] with d at least 1")
    check_row_mask(name, features, valid)
    rows = features.shape[:-1].numel()
    if process_group is None and rows < minimum:
        raise ValueError(
            f"{name} {shape}: must have at least {minimum} rows, got {rows}"
            + ("; a single one has nothing to be compared with" if minimum > 1 else "")
        )


def to_rows(features: Tensor, valid: Tensor | None) -> Rows:
    """All axes but the last as rows. What stands at a not-valid place is gone, NaN included."""
    values = float32_or_wider(features).flatten(0, -2)
    if valid is None:
        return Rows(values, torch.ones(len(values), 1, dtype=torch.bool, device=values.device))
    present = valid.reshape(-1, 1)
    return Rows(values.masked_fill(~present, 0), present)


def centre(rows: Rows, process_group: ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """Rows minus their mean over all ranks, 0 where not present; and the number of all rows."""
    count = rows.present.sum().to(rows.values.dtype)
    sums = torch.cat([rows.values.sum(dim=0), count.unsqueeze(0)])
    if process_group is not None:
        # A sum of squares around the mean does not change with the mean to first order, so its
        # gradient through the mean, which would be needed from all ranks, is 0.
        sums = sum_over_ranks(sums.detach(), process_group)
    count = sums[-1]
    centred = rows.values - sums[:-1] / count.clamp(min=1)
    return centred.masked_fill(~rows.present, 0), count
