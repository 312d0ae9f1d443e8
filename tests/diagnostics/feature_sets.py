"""Features of several ranks in uneven batches, for one process and for many."""

import torch
from torch import Tensor

DIM = 5
# Per rank, the rows of each batch: uneven, a batch of one row, an empty one, a rank with nothing.
ROWS = [[6, 1, 4], [9], [], [0, 3]]


def batches(rank: int) -> list[tuple[Tensor, Tensor]]:
    """Features around a large mean, of another scale on every rank, with their validity."""
    random = torch.Generator().manual_seed(rank)
    found = []
    for rows in ROWS[rank]:
        x = torch.randn(rows, 2, DIM, generator=random, dtype=torch.float64)
        x = (1 + rank) * x * torch.linspace(0.2, 2, DIM, dtype=torch.float64) + 1e4
        valid = torch.rand(rows, 2, generator=random) < 0.8
        valid[:, 0] = True
        found.append((x.masked_fill(~valid[..., None], torch.nan), valid))
    return found


def views(rank: int) -> list[Tensor]:
    """Objects with two views each."""
    random = torch.Generator().manual_seed(rank)
    return [
        torch.randn(rows, 2, DIM, generator=random, dtype=torch.float64) + 100
        for rows in ROWS[rank]
    ]
