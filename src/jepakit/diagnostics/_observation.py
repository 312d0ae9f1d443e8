"""What the collapse monitor reads off one batch: a handful of numbers, in one read-back."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from jepakit.diagnostics._moments import Moments
from jepakit.diagnostics._rows import masked_rows
from jepakit.diagnostics._spectrum import entropy_rank, scatter_spectrum

__all__ = ["Measured", "measure"]


class Measured(NamedTuple):
    """Statistics of a batch, still on its device."""

    figures: Tensor  # rows, total std, std / length, effective rank, share off the line, finite
    variance: Tensor  # [d], of each dimension


def measure(features: Tensor, valid: Tensor | None, process_group: ProcessGroup | None) -> Measured:
    """Statistics of the valid rows of all ranks; reads nothing back."""
    rows, present = masked_rows(features, valid)
    # The eigenvalue solver raises on NaN; what is not finite is told by the last figure instead.
    sound = rows.isfinite()
    rows, finite = rows.where(sound, 0), sound.all().to(rows.dtype)
    moments = Moments.of(rows, present)
    if process_group is None and len(rows) < rows.shape[1]:
        centred = (rows - moments.mean).masked_fill(~present, 0)
        matrix = centred @ centred.T
    else:
        moments = moments.over_ranks(process_group)
        matrix = moments.scatter
    if process_group is not None:
        finite = finite.unsqueeze(0)
        torch.distributed.all_reduce(finite, op=torch.distributed.ReduceOp.MIN, group=process_group)
        finite = finite.squeeze(0)
    spectrum = scatter_spectrum(matrix, moments.sum_of_squares)
    total = spectrum.sum()
    off_line = (spectrum[:-1].sum() / total).nan_to_num()
    count = moments.count
    variance = moments.covariance.diagonal()
    length = moments.sum_of_squares / count.clamp(min=1)
    relative = (moments.scatter.diagonal().sum() / count.clamp(min=1) / length).sqrt()
    figures = [
        count,
        variance.sum().sqrt(),
        relative.nan_to_num(),
        entropy_rank(spectrum),
        off_line,
        finite,
    ]
    return Measured(torch.stack(figures), variance)
