"""Features as rows with validity, as losses over a whole batch of vectors take them."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from jepakit._checks import check_floating, check_process_group, check_row_mask
from jepakit._distributed import sum_over_ranks
from jepakit._precision import float32_or_wider


class Rows(NamedTuple):
    """Feature vectors, one a row, and which of them are not padding."""

    values: Tensor  # [n d], float32 or wider, 0 where not valid
    valid: Tensor  # [n 1], bool


def check_rows(
    name: str,
    features: Tensor,
    valid: Tensor | None,
    process_group: ProcessGroup | None = None,
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
    # One rank of several may have no rows: it still takes part in the collectives.
    if process_group is None and rows < minimum:
        raise ValueError(f"{name} {shape}: must have at least {minimum} rows, got {rows}")


def to_rows(features: Tensor, valid: Tensor | None) -> Rows:
    """All axes but the last as rows, with padding set to 0, NaN included."""
    values = float32_or_wider(features).flatten(0, -2)
    if valid is None:
        return Rows(values, torch.ones(len(values), 1, dtype=torch.bool, device=values.device))
    valid = valid.reshape(-1, 1)
    return Rows(values.masked_fill(~valid, 0), valid)


def centred_rows(
    name: str, features: Tensor, valid: Tensor | None, process_group: ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """Rows minus their mean over all ranks, 0 where not valid; and the number of all rows."""
    check_rows(name, features, valid, process_group, minimum=2)
    rows = to_rows(features, valid)
    count = rows.valid.sum().to(rows.values.dtype)
    sums = torch.cat([rows.values.sum(dim=0), count.unsqueeze(0)])
    if process_group is not None:
        # No gradient through the mean of all ranks: second moments around the mean, for which this
        # is used, do not change with the mean to first order, since sum_i (x_i - mean) = 0.
        sums = sum_over_ranks(sums.detach(), process_group)
    count = sums[-1]
    centred = rows.values - sums[:-1] / count.clamp(min=1)
    return centred.masked_fill(~rows.valid, 0), count
