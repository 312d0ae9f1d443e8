"""One rank of test_target_centering_ranks.py: `centering_worker.py RANK WORLD_SIZE STORE`."""

from typing import Literal

import torch
import torch.distributed as dist
from tests.ranks import joined
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jepakit.losses import TargetCentering, masked_mse

# Per step and rank, the number of images: uneven, and no image at all.
SIZES = [[3, 1, 2], [2, 0, 4], [0, 0, 2]]


def data(step: int, rank: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(10 * step + rank)
    # Another mean and scale per rank: statistics of one rank alone are far off.
    x = (1 + rank) * torch.randn(SIZES[step][rank], 6, 4, generator=random).double() + 3 * rank
    return x, torch.rand(len(x), 6, generator=random) < 0.6


class Model(nn.Module):
    """With the centring inside of what DDP wraps, whose buffers it may broadcast."""

    def __init__(self, momentum: float, scale: Literal["channel", "whiten"]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 4)
        self.centre = TargetCentering((2, 3), 4, scale=scale, momentum=momentum)

    def forward(self, x: Tensor, valid: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        target = self.centre(x, valid, process_group=group)
        return masked_mse(self.linear(x), target, valid, process_group=group)


def check(
    group: dist.ProcessGroup,
    momentum: float,
    broadcast: bool,
    scale: Literal["channel", "whiten"],
) -> None:
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    whole = Model(momentum, scale).double()
    net = DistributedDataParallel(
        Model(momentum, scale).double(), process_group=group, broadcast_buffers=broadcast
    )
    for step in range(len(SIZES)):
        parts = [data(step, each) for each in range(ranks)]
        x, valid = (torch.cat(part) for part in zip(*parts, strict=True))
        if not len(x):
            continue
        for model in (whole, net):
            model.zero_grad()
        expected = whole(x, valid, None)
        expected.backward()
        value = net(*parts[rank], group)
        value.backward()
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
        for ours, theirs in zip(net.parameters(), whole.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-9)
        for ours, theirs in zip(net.buffers(), whole.buffers(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def main(rank: int, world_size: int) -> None:
    pair = dist.new_group([0, 1])
    for momentum in (0.0, 0.7):
        for broadcast, scale in ((False, "channel"), (True, "channel"), (False, "whiten")):
            check(dist.group.WORLD, momentum, broadcast, scale)
            if rank < 2:
                check(pair, momentum, broadcast, scale)


if __name__ == "__main__":
    with joined() as ranks:
        main(*ranks)
