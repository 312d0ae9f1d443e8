"""Features as rows with validity, as losses over a whole batch of vectors take them."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from jepakit._checks import check_rows
from jepakit._distributed import sum_over_ranks
from jepakit._precision import float32_or_wider


class Rows(NamedTuple):
    """Feature vectors, one a row, and which of them are not padding."""

    values: Tensor  # [n d], float32 or wider, 0 where not valid
    valid: Tensor  # [n 1], bool


def to_rows(features: Tensor, valid: Tensor | None) -> Rows:
    """All axes but the last as rows, with padding set to 0, NaN included."""
    values = float32_or_wider(features).flatten(0, -2)
    if valid is None:
        return Rows(values, everything_valid(values).unsqueeze(1))
    valid = valid.flatten()
    return Rows(zero_invalid(values, valid), valid.unsqueeze(1))


def everything_valid(features: Tensor) -> Tensor:
    """Return True for every feature vector: the `valid` that None stands for."""
    return torch.ones(features.shape[:-1], dtype=torch.bool, device=features.device)


def zero_invalid(features: Tensor, valid: Tensor) -> Tensor:
    """Return features with exact zeros where `valid` is False, in place of NaN too.

    To be called before anything is computed from them: a NaN times a gradient of 0 is a NaN still.
    """
    return features.masked_fill(~valid.unsqueeze(-1), 0)


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
    return zero_invalid(centred, rows.valid.squeeze(1)), count
