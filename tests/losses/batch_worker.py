"""One rank of test_batch_distributed.py: `python batch_worker.py RANK WORLD_SIZE STORE`."""

import torch
import torch.distributed as dist
from batch_losses import BATCH_LOSSES
from tests.ranks import joined
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jepakit.losses import FeatureQueue, LearnableTemperature, info_nce, relational_loss

# Per rank, the valid tokens of each sample: uneven batches, and a rank with nothing valid.
COUNTS = [[3, 2, 3], [1], [0, 0]]
# A rank that got no sample at all, as at the end of an epoch.
NO_SAMPLE = [[3, 2, 3], [], [1, 2]]


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


def check(name: str, group: dist.ProcessGroup, samples: list[list[int]] = COUNTS) -> None:
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    loss = BATCH_LOSSES[name]
    parts = [data(counts, i) for i, counts in enumerate(samples[:ranks])]
    whole, net = model(), DistributedDataParallel(model(), process_group=group)
    x, y, valid = (torch.cat(part) for part in zip(*parts, strict=True))
    expected = loss.call(whole(x), whole(y), valid)
    expected.backward()
    x, y, valid = parts[rank]
    own = net(torch.stack([x, y]))
    value = loss.call(own[0], own[1], valid, process_group=group)
    value.backward()
    torch.testing.assert_close(value.detach(), expected.detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(net.module.weight.grad, whole.weight.grad, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(net.module.bias.grad, whole.bias.grad, rtol=1e-7, atol=1e-9)


def check_contrastive(group: dist.ProcessGroup) -> None:
    """False negatives of all ranks, a learned temperature, and one queue on every rank."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    sizes = [len(counts) for counts in COUNTS[:ranks]]
    start = sum(sizes[:rank])
    here = slice(start, start + sizes[rank])
    random = torch.Generator().manual_seed(5)
    x, y = (torch.randn(sum(sizes), 4, generator=random, dtype=torch.float64) for _ in range(2))
    same = torch.rand(sum(sizes), sum(sizes) + 3, generator=random) < 0.3
    queue = FeatureQueue(3, 4).double()
    queue.push(y[here], process_group=group)
    torch.testing.assert_close(queue.negatives, y[-3:])

    found = []
    for rows, process_group in ((here, group), (slice(None), None)):
        net = nn.ModuleDict({"linear": nn.Linear(4, 4), "temperature": LearnableTemperature()})
        torch.manual_seed(0)
        nn.init.normal_(net["linear"].weight)
        nn.init.zeros_(net["linear"].bias)
        net = net.double()
        value = info_nce(
            net["linear"](x[rows]),
            net["linear"](y[rows]),
            temperature=net["temperature"](),
            negatives=queue.negatives,
            false_negatives=same[rows],
            symmetric=True,
            process_group=process_group,
        )
        value.backward()
        gradients = [p.grad for p in net.parameters()]
        if process_group is not None:
            for gradient in gradients:  # what DDP does
                dist.all_reduce(gradient, group=group)
                gradient /= ranks
        found.append((value.detach(), *gradients))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-9)


def check_sets(group: dist.ProcessGroup) -> None:
    """Sets of tokens stay apart over ranks: relations within each, one mean over all."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    parts = [data(counts, i) for i, counts in enumerate(COUNTS[:ranks])]
    x, y, valid = (torch.cat(part) for part in zip(*parts, strict=True))
    expected = relational_loss(x, y, valid)
    x, y, valid = parts[rank]
    value = relational_loss(x, y, valid, process_group=group)
    torch.testing.assert_close(value, expected)


def main(rank: int, world_size: int) -> None:
    pair = dist.new_group([0, 1])
    for name in BATCH_LOSSES:
        try:
            check(name, dist.group.WORLD)
            check(name, dist.group.WORLD, NO_SAMPLE)
            if rank < 2:
                check(name, pair)
        except Exception as error:
            raise RuntimeError(name) from error
    check_contrastive(dist.group.WORLD)
    check_sets(dist.group.WORLD)


if __name__ == "__main__":
    with joined() as ranks:
        main(*ranks)
