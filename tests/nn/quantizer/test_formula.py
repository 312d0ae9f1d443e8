"""The quantizer is its formulas, in value and in gradient, and its start and refresh."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.nn.quantizer.naive import Naive
from torch import Tensor

from jepakit import linear
from jepakit.nn import VectorQuantizer
from jepakit.nn.quantizer import gumbel_like


def ragged(counts: list[int], n: int = 3) -> Tensor:
    return torch.arange(n) < torch.tensor(counts)[:, None]


@pytest.mark.parametrize("variant", ["hard", "cosine", "gumbel"])
@settings(max_examples=15)
@given(
    counts=st.lists(st.integers(0, 3), min_size=1, max_size=4).filter(any),
    seed=st.integers(0, 2**31),
    momentum=st.sampled_from([0.5, 0.9, 0.99]),
    log=st.integers(-2, 2),
)
def test_equals_loops(
    variant: str, counts: list[int], seed: int, momentum: float, log: int
) -> None:
    """Three steps in float64. Traps: the commitment weight on the wrong term, counts that start at
    0 beside sums that start at the codes, Gumbel indices that are not the sampled ones."""
    random = torch.Generator().manual_seed(seed)
    scale, dim = 10.0**log, 4

    def draw(*shape: int) -> Tensor:
        return scale * (torch.randn(*shape, generator=random, dtype=torch.float64) + 0.5)

    tau = 3 * scale**2 if variant == "gumbel" else None
    quantizer = VectorQuantizer(
        5,
        dim,
        momentum=momentum,
        commitment_weight=0.3,
        cosine=variant == "cosine",
        temperature=tau,
        refresh_ratio=0,
    ).double()
    quantizer.start_from(draw(5, dim))
    naive = Naive(quantizer.counts, quantizer.sums, momentum, variant == "cosine")
    valid = ragged(counts)
    for step in range(3):
        x = draw(len(counts), 3, dim).requires_grad_()
        probe = torch.randn(len(counts), 3, dim, generator=random, dtype=torch.float64)
        noise = None
        if tau is not None:
            again = torch.Generator().manual_seed(step)
            torch.rand(5, generator=again)  # the refresh's
            noise = gumbel_like(x.new_zeros(x[..., 0].numel(), 5), again)[valid.flatten()]
        expected, indices, gap, perplexity = naive.step(x[valid], noise, tau or 1.0)
        out = quantizer(x, valid, generator=torch.Generator().manual_seed(step))

        assert out.indices[valid].tolist() == indices
        assert (out.indices[~valid] == -1).all()
        assert not out.quantized[~valid].any()
        torch.testing.assert_close(out.quantized[valid], expected, rtol=1e-6, atol=1e-12 * scale)
        torch.testing.assert_close(out.loss, 0.3 * gap, rtol=1e-6, atol=0)
        assert out.perplexity.item() == pytest.approx(perplexity, rel=1e-6)
        assert out.usage_ratio.item() == pytest.approx(len(set(indices)) / 5)
        for ours, theirs in (
            ((out.quantized * probe).sum(), (expected * probe[valid]).sum()),
            (out.loss, 0.3 * gap),
        ):
            found, wanted = (
                torch.autograd.grad(value, x, retain_graph=True)[0] for value in (ours, theirs)
            )
            assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()
            assert not found[~valid].any()
        codes = torch.stack(naive.codes())
        torch.testing.assert_close(quantizer.codebook, codes, rtol=1e-6, atol=1e-12 * scale)
        wanted = torch.tensor(naive.counts, dtype=torch.float64)
        torch.testing.assert_close(quantizer.counts, wanted, rtol=1e-6, atol=0)


def test_the_first_update_moves_no_code_that_was_not_used() -> None:
    """Trap: counts at 0 beside sums at the codes; at momentum 0.99 the norm grows a hundredfold."""
    quantizer = VectorQuantizer(8, 4, refresh_ratio=0)
    codes = torch.randn(8, 4)
    quantizer.start_from(codes)
    torch.testing.assert_close(quantizer.codebook, codes)
    used = quantizer(codes[:1] + 0.01).indices.item()
    rest = torch.arange(8) != used
    torch.testing.assert_close(quantizer.codebook[rest], codes[rest], rtol=2e-5, atol=0)


def test_straight_through_is_exact() -> None:
    """`z + (e - z)` rounds, and what comes out is then no code."""
    quantizer = VectorQuantizer(16, 4).eval()
    out = quantizer(1000 * torch.randn(50, 4))
    assert torch.equal(out.quantized, quantizer.codebook[out.indices])
    assert torch.equal(quantizer.lookup(out.indices), out.quantized)


def test_starts_from_the_data() -> None:
    """No two codes alike while there are vectors enough, and none that is no vector."""
    x = torch.randn(40, 3, dtype=torch.float64)
    quantizer = VectorQuantizer(16, 3).double()
    seen = quantizer(x).quantized
    gaps = (seen.unsqueeze(1) - x).abs().amax(dim=2)
    assert gaps.min(dim=1).values.max() < 1e-9
    assert quantizer.started
    assert quantizer(x).usage_ratio == 1


@given(n=st.integers(1, 20), dead=st.lists(st.booleans(), min_size=2, max_size=9))
def test_a_dead_code_becomes_a_vector_of_the_batch(n: int, dead: list[bool]) -> None:
    """And has the mean count, so that it is not dead again at once; the living stay."""
    quantizer = VectorQuantizer(len(dead), 2, refresh_ratio=0.5, momentum=0.999999999).double()
    codes = torch.randn(len(dead), 2, dtype=torch.float64)
    quantizer.start_from(codes)
    dead = torch.tensor(dead)
    with torch.no_grad():
        quantizer.counts[dead] *= 1e-3
        quantizer.sums[dead] *= 1e-3
    mean = quantizer.counts.mean()
    dead = quantizer.counts < 0.5 * mean
    x = 10 + torch.randn(n, 2, dtype=torch.float64)
    quantizer(x)
    after = quantizer.codebook
    torch.testing.assert_close(after[~dead], codes[~dead], rtol=1e-2, atol=1e-4)
    gaps, which = torch.cdist(after[dead], x).min(dim=1) if dead.any() else (x.new_zeros(1), None)
    assert gaps.max() < 1e-2
    assert (quantizer.counts[dead] - mean).abs().lt(1e-6).all()
    if which is not None:
        assert len(which.unique()) == min(n, int(dead.sum()))


def test_every_vector_may_be_drawn() -> None:
    """Trap: `randint(0, n - 1)`, or a prefix of the batch."""
    x = torch.arange(7.0).unsqueeze(1) + 1
    seen = set()
    for seed in range(60):
        quantizer = VectorQuantizer(3, 1)
        generator = torch.Generator().manual_seed(seed)
        seen |= set(quantizer(x, generator=generator).quantized.round().flatten().tolist())
    assert seen == set(range(1, 8))


def test_sampled_codes_follow_the_distances() -> None:
    """Gumbel: shares of a softmax over distances; in eval, and as it cools, the nearest."""
    quantizer = VectorQuantizer(
        3, 1, temperature=linear(2.0, 1e-4, steps=10), momentum=0.999999999, refresh_ratio=0
    )
    quantizer.start_from(torch.tensor([[0.0], [1.0], [3.0]]))
    x = torch.full((20000, 1), 0.4)
    hot = quantizer(x, step=0, generator=torch.Generator().manual_seed(0)).indices
    wanted = (-((0.4 - torch.tensor([0.0, 1.0, 3.0])) ** 2) / 2.0).softmax(dim=0)
    shares = torch.bincount(hot, minlength=3) / len(hot)
    torch.testing.assert_close(shares, wanted, rtol=0, atol=0.012)
    assert not quantizer(x, step=10).indices.any()
    assert not quantizer.eval()(x).indices.any()


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_what_is_not_finite_never_enters_the_codebook(poison: float) -> None:
    """Trap: one bad step, which a gradient scaler would skip, and an average that is NaN for ever;
    values at padding do not even enter the loss."""
    x = torch.randn(4, 6, 3)
    valid = ragged([4, 6, 1, 0], 6)
    books, losses = [], []
    for bad in (x, x.masked_fill(~valid.unsqueeze(-1), poison)):
        quantizer = VectorQuantizer(4, 3)
        for step in range(3):
            out = quantizer(bad, valid, generator=torch.Generator().manual_seed(step))
        books.append(quantizer.codebook)
        losses.append(out.loss)
    assert torch.equal(books[0], books[1])
    assert torch.equal(losses[0], losses[1])

    x[0, 0, 0] = poison
    out = quantizer(x, valid)
    assert not out.loss.isfinite()
    assert quantizer.codebook.isfinite().all()
    valid[0, 0] = False
    assert quantizer(x, valid).loss.isfinite()
