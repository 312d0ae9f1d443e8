"""One rank of test_masked_distributed.py: `python masked_worker.py RANK WORLD_SIZE STORE MODE`."""

import sys

import torch
import torch.distributed as dist
from tests.ranks import joined
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jepakit.losses import (
    masked_cosine,
    masked_huber,
    masked_l1,
    masked_mse,
    masked_smooth_l1,
)

LOSSES = [masked_mse, masked_l1, masked_smooth_l1, masked_huber, masked_cosine]
# Per rank, the valid tokens of each sample: uneven batches, and a rank with nothing at all.
COUNTS = [[5, 4, 5], [1], [0, 0]]
NOTHING = [[0], [0, 0], [0]]


def data(counts: list[int], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(len(counts), 5, 6, generator=random, dtype=torch.float64)
    # Another scale per rank: a mean of per-rank means is far off.
    target = 10.0**seed * torch.randn(len(counts), 5, 4, generator=random, dtype=torch.float64)
    return x, target, torch.arange(5) < torch.tensor(counts)[:, None]


def model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(6, 4).double()


def one_batch(loss, counts: list[list[int]]) -> tuple[Tensor, Tensor]:
    parts = [data(c, seed) for seed, c in enumerate(counts)]
    x, target, valid = (torch.cat(part) for part in zip(*parts, strict=True))
    net = model()
    value = loss(net(x), target, valid)
    value.backward()
    return value.detach(), net.weight.grad


def check_ddp(group: dist.ProcessGroup, counts: list[list[int]], *, compiled: bool = False) -> None:
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    x, target, valid = data(counts[rank], rank)
    for loss in LOSSES:

        def global_loss(pred: Tensor, target: Tensor, valid: Tensor, loss=loss) -> Tensor:
            return loss(pred, target, valid, process_group=group)

        if compiled:
            global_loss = torch.compile(global_loss, fullgraph=True, backend="aot_eager")
        net = DistributedDataParallel(model(), process_group=group)
        value = global_loss(net(x), target, valid)
        value.backward()
        expected_value, expected_gradient = one_batch(loss, counts[:ranks])
        torch.testing.assert_close(value.detach(), expected_value)
        torch.testing.assert_close(net.module.weight.grad, expected_gradient)


def check_the_trap_is_seen() -> None:
    """Without the group it is the mean of per-rank means, and that is something else here."""
    x, target, valid = data(COUNTS[dist.get_rank()], dist.get_rank())
    net = DistributedDataParallel(model())
    masked_mse(net(x), target, valid).backward()
    _, expected = one_batch(masked_mse, COUNTS[: dist.get_world_size()])
    assert (net.module.weight.grad - expected).abs().max() > 0.1 * expected.abs().max()


def main(rank: int, world_size: int, mode: str) -> None:
    if mode == "compiled":
        check_ddp(dist.group.WORLD, COUNTS, compiled=True)
    else:
        check_the_trap_is_seen()
        check_ddp(dist.group.WORLD, COUNTS)
        check_ddp(dist.group.WORLD, NOTHING)
        pair = dist.new_group([0, 1])
        if rank < 2:
            check_ddp(pair, COUNTS)


if __name__ == "__main__":
    with joined() as (rank, world_size):
        main(rank, world_size, sys.argv[4])
