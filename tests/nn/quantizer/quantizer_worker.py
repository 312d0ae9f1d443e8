"""One rank of test_ranks.py: `python quantizer_worker.py RANK WORLD_SIZE STORE`."""

import torch
import torch.distributed as dist
from tests.ranks import joined
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jepakit.nn import VectorQuantizer
from jepakit.nn import quantizer as implementation
from jepakit.nn.quantizer import code_scores

# Per step and rank, the valid tokens of each sample: uneven, nothing valid, and no sample at all.
COUNTS = [
    [[3, 2, 3], [1], [0, 0]],
    [[], [3, 1], [2]],
    [[0], [0, 0], [0]],
    [[1], [2, 3], [3, 3, 3]],
    [[3, 3], [0], []],
]
VARIANTS = {"hard": {}, "cosine": {"cosine": True}, "gumbel": {"temperature": 20.0}}


def data(step: int, rank: int) -> tuple[Tensor, Tensor]:
    counts = COUNTS[step][rank]
    random = torch.Generator().manual_seed(10 * step + rank)
    # Another mean and scale per rank and step: what one rank alone would learn is far off.
    x = (1 + rank) * torch.randn(len(counts), 3, 6, generator=random, dtype=torch.float64) + rank
    valid = torch.arange(3) < torch.tensor(counts).view(-1, 1)
    return x + step, valid


def noise(step: int, rank: int, num_codes: int) -> Tensor:
    """Gumbel noise of one rank, which in one process is joined."""
    rows = 3 * len(COUNTS[step][rank])
    random = torch.Generator().manual_seed(1000 + 10 * step + rank)
    uniform = torch.rand(rows, num_codes, generator=random, dtype=torch.float64)
    return -(-uniform.log()).log()


class Model(nn.Module):
    def __init__(self, variant: str, seed: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(6, 4)
        torch.manual_seed(seed)  # codebooks that differ before the first batch
        self.quantizer = VectorQuantizer(5, 4, momentum=0.6, refresh_ratio=0.5, **VARIANTS[variant])

    def forward(self, x: Tensor, *rest: object) -> tuple[Tensor, ...]:
        valid, generator, group = rest
        return self.quantizer(self.linear(x), valid, generator=generator, process_group=group)


def check(variant: str, group: dist.ProcessGroup, broadcast: bool) -> None:
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    whole = Model(variant, 0).double()
    net = DistributedDataParallel(
        Model(variant, rank).double(), process_group=group, broadcast_buffers=broadcast
    )
    original = implementation.sample_codes
    sizes: dict[str, Tensor] = {}

    def sample_with_noise(
        vectors: Tensor, codes: Tensor, temperature: float, generator: object
    ) -> object:
        logits = code_scores(vectors, codes) / temperature + sizes["noise"]
        return logits.argmax(dim=1), logits.softmax(dim=1) @ codes

    refreshed = 0
    for step in range(len(COUNTS)):
        parts = [data(step, each) for each in range(ranks)]
        x, valid = (torch.cat(part) for part in zip(*parts, strict=True))
        shares = [noise(step, each, 5) for each in range(ranks)]
        before = whole.quantizer.counts.clone()
        implementation.sample_codes = sample_with_noise
        for training in (True, False):
            for model in (whole, net):
                model.train(training)
                model.zero_grad()
            sizes["noise"] = torch.cat(shares)
            expected = whole(x, valid, torch.Generator().manual_seed(step), None)
            (expected.loss + expected.quantized.square().sum() / 10).backward()
            sizes["noise"] = shares[rank]
            # Only the first rank's generator counts.
            seeded = torch.Generator().manual_seed(step + 77 * rank)
            out = net(*parts[rank], seeded, group)
            (out.loss + ranks * out.quantized.square().sum() / 10).backward()

            start = sum(len(part[0]) for part in parts[:rank])
            here = slice(start, start + len(parts[rank][0]))
            close = {"rtol": 1e-9, "atol": 1e-9}
            torch.testing.assert_close(out.quantized, expected.quantized[here], **close)
            assert torch.equal(out.indices, expected.indices[here])
            for ours, theirs in zip(out[2:], expected[2:], strict=True):
                torch.testing.assert_close(ours, theirs, **close)
            for ours, theirs in zip(net.parameters(), whole.parameters(), strict=True):
                torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-9)
            codebook = net.module.quantizer.codebook.contiguous()
            torch.testing.assert_close(codebook, whole.quantizer.codebook, **close)
            codebooks = [torch.empty_like(codebook) for _ in range(ranks)]
            dist.all_gather(codebooks, codebook, group=group)
            assert all(torch.equal(codebook, other) for other in codebooks)
        implementation.sample_codes = original
        refreshed += int((before < 0.5 * before.mean()).sum())
    assert refreshed, "no code was ever dead: the test sees no refresh"


def main(rank: int, world_size: int) -> None:
    pair = dist.new_group([0, 1])
    for variant in VARIANTS:
        for broadcast in (False, True):
            try:
                check(variant, dist.group.WORLD, broadcast)
                if rank < 2:
                    check(variant, pair, broadcast)
            except Exception as error:
                raise RuntimeError(variant) from error


if __name__ == "__main__":
    with joined() as ranks:
        main(*ranks)
