"""One rank of test_streaming.py: `python statistics_worker.py RANK WORLD_SIZE STORE`."""

import torch
import torch.distributed as dist
from feature_sets import DIM, batches, views
from tests.ranks import joined

from jepakit.diagnostics import CollapseMonitor, FeatureStatistics, LidarStatistics


def check(group: dist.ProcessGroup) -> None:
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    own, whole = FeatureStatistics(DIM, process_group=group), FeatureStatistics(DIM)
    for batch in batches(rank):
        own.update(*batch)
    for other in range(ranks):
        for batch in batches(other):
            whole.update(*batch)
    found, expected = own.compute(), whole.compute()
    for name in vars(expected):
        mine, all_of_them = getattr(found, name), getattr(expected, name)
        torch.testing.assert_close(mine, all_of_them, rtol=1e-8, atol=1e-10)

    objects, every = LidarStatistics(DIM, process_group=group), LidarStatistics(DIM)
    for batch in views(rank):
        objects.update(batch)
    for other in range(ranks):
        for batch in views(other):
            every.update(batch)
    torch.testing.assert_close(objects.compute(), every.compute(), rtol=1e-9, atol=0)


def check_monitor(group: dist.ProcessGroup) -> None:
    """Every rank observes the joined batch, and all of them report at the same step."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    own = CollapseMonitor(action="record", process_group=group)
    whole = CollapseMonitor(action="record")
    random, uneven = torch.Generator().manual_seed(7), [4, 7, 2, 5][:ranks]
    for step in range(30):
        x = torch.randn(sum(uneven), DIM, generator=random, dtype=torch.float64)
        if step >= 20:
            x[:, 1:] *= 1e-3
        found, expected = own.update(x.split(uneven)[rank]), whole.update(x)
        assert (found and found.step) == (expected and expected.step)
    torch.testing.assert_close(
        torch.tensor(own.history), torch.tensor(whole.history), rtol=1e-6, atol=1e-9
    )
    found = own.update(torch.full((4, DIM), torch.nan if rank == 0 else 1.0))
    assert found and found.kind == "not finite"  # NaN on one rank is known to all
    assert len(own.history) == 30


def main(rank: int, world_size: int) -> None:
    pair = dist.new_group([0, 1])
    check(dist.group.WORLD)
    check_monitor(dist.group.WORLD)
    if rank < 2:
        check(pair)


if __name__ == "__main__":
    with joined() as ranks:
        main(*ranks)
