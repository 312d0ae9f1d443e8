"""One rank of test_batch_distributed.py: `python batch_worker.py RANK WORLD_SIZE STORE`."""

import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from batch_losses import BATCH_LOSSES
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

# Per rank, the valid tokens of each sample: uneven batches, and a rank with nothing valid.
COUNTS = [[3, 2, 3], [1], [0, 0]]


def data(counts: list[int], rank: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(rank)
    # Another mean and scale per rank: statistics of one rank's own are far off.
    x, y = (
        (1 + rank) * torch.randn(len(counts), 3, 6, generator=random, dtype=torch.float64) + rank
        for _ in range(2)
    )
    return x, y, torch.arange(3) < torch.tensor(counts)[:, None]


def model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(6, 4).double()


def check(name: str, group: dist.ProcessGroup) -> None:
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    loss = BATCH_LOSSES[name]
    parts = [data(counts, i) for i, counts in enumerate(COUNTS[:ranks])]
    if not loss.tokens:
        parts = [(x[:, 0], y[:, 0], None) for x, y, _ in parts]

    whole, net = model(), DistributedDataParallel(model(), process_group=group)
    joined = [None if p[0] is None else torch.cat(p) for p in zip(*parts, strict=True)]
    expected = loss.call(whole(joined[0]), whole(joined[1]), joined[2])
    expected.backward()
    x, y, valid = parts[rank]
    own = net(torch.stack([x, y]))
    value = loss.call(own[0], own[1], valid, process_group=group)
    value.backward()
    torch.testing.assert_close(value.detach(), expected.detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(net.module.weight.grad, whole.weight.grad, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(net.module.bias.grad, whole.bias.grad, rtol=1e-7, atol=1e-9)


def main(rank: int, world_size: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=60),
    )
    pair = dist.new_group([0, 1])
    for name in BATCH_LOSSES:
        try:
            check(name, dist.group.WORLD)
            if rank < 2:
                check(name, pair)
        except Exception as error:
            raise RuntimeError(name) from error
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
