"""Quantizers use all of their codes, stay within the data, and ignore padding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jepakit.nn import VectorQuantizer

CLUSTERS = 3 * torch.randn(64, 16, generator=torch.Generator().manual_seed(0))


def clustered(n: int, shift: float = 0.0) -> Tensor:
    return CLUSTERS[torch.randint(0, 64, (n,))] + 0.1 * torch.randn(n, 16) + shift


def usage(quantizer: VectorQuantizer, shift: float = 0.0) -> float:
    quantizer.eval()
    found = quantizer(clustered(8192, shift)).usage_ratio.item()
    quantizer.train()
    return found


@pytest.mark.parametrize(("num_codes", "seed"), [(32, 0), (64, 1), (64, 2), (128, 3)])
@pytest.mark.parametrize("variant", ["hard", "cosine", "gumbel"])
def test_uses_its_codes_and_stays_within_the_data(variant: str, num_codes: int, seed: int) -> None:
    """90 % of the codes, be they fewer or more than clusters; no norm beyond the data's."""
    torch.manual_seed(seed)
    quantizer = VectorQuantizer(
        num_codes,
        16,
        cosine=variant == "cosine",
        temperature=0.1 if variant == "gumbel" else None,
    )
    longest = 1.0 if variant == "cosine" else 0.0
    for _ in range(60):
        x = clustered(512)
        quantizer(x)
        if variant != "cosine":
            longest = max(longest, x.norm(dim=1).max().item())
        assert quantizer.codebook.norm(dim=1).max() <= longest * (1 + 1e-4)
    assert usage(quantizer) >= 0.9


@pytest.mark.parametrize("refresh_ratio", [0.05, 0.0])
def test_comes_back_when_the_data_move_away(refresh_ratio: float) -> None:
    """Without the refresh a single code takes it all."""
    quantizer = VectorQuantizer(64, 16, momentum=0.95, refresh_ratio=refresh_ratio)
    for step in range(180):
        quantizer(clustered(512, shift=0.0 if step < 50 else 10.0))
    found = usage(quantizer, shift=10.0)
    assert found >= 0.9 if refresh_ratio else found < 0.1


def test_stays_in_use_while_the_features_move() -> None:
    """Above 10 % at every step. Trap: commitment 0.3, momentum 0.99 and a refresh every 500 steps
    left 1.7 % of a codebook in use, and only a count of codes would have shown it."""
    quantizer = VectorQuantizer(64, 16, commitment_weight=0.15, momentum=0.95)
    stale = VectorQuantizer(64, 16, commitment_weight=0.15, momentum=0.99, refresh_ratio=0.0)
    lowest = {quantizer: 1.0, stale: 1.0}
    for step in range(200):
        features = clustered(512, shift=0.1 * step) * (1 + 0.02 * step)  # as an encoder that learns
        for each in lowest:
            lowest[each] = min(lowest[each], each(features).usage_ratio.item())
    assert lowest[quantizer] > 0.1, "used throughout"
    assert lowest[stale] < 0.1, "the features move far enough to show it"


@settings(max_examples=8)
@given(seed=st.integers(0, 2**31), cosine=st.booleans(), front=st.booleans())
def test_padding_never_votes(seed: int, cosine: bool, front: bool) -> None:
    """A batch with 50 % padding gives the codebook of the batch without it, start and refresh
    included. Traps: padding votes for codes, and dead codes become padding."""
    torch.manual_seed(seed)
    plain = VectorQuantizer(8, 4, cosine=cosine, momentum=0.6, refresh_ratio=0.4).double()
    padded = VectorQuantizer(8, 4, cosine=cosine, momentum=0.6, refresh_ratio=0.4).double()
    padded.load_state_dict(plain.state_dict())
    for step in range(8):
        x = torch.randn(3, 4, 4, dtype=torch.float64) + step
        rest = torch.full_like(x, 7.0)
        both = torch.cat([rest, x] if front else [x, rest], dim=1)
        valid = torch.cat([torch.ones(3, 4), torch.zeros(3, 4)], dim=1).bool()
        valid = valid.flip(1) if front else valid
        one = plain(x, generator=torch.Generator().manual_seed(step))
        two = padded(both, valid, generator=torch.Generator().manual_seed(step))
        torch.testing.assert_close(padded.codebook, plain.codebook, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(padded.counts, plain.counts, rtol=1e-12, atol=1e-12)
        assert torch.equal(two.indices[valid], one.indices.flatten())
        for ours, theirs in zip(two[2:], one[2:], strict=True):
            torch.testing.assert_close(ours, theirs)


def test_a_batch_without_a_vector_changes_nothing() -> None:
    """Law 6: loss 0 with a graph, finite gradients, and the start waits for data."""
    quantizer = VectorQuantizer(4, 3)
    x = torch.randn(2, 5, 3, requires_grad=True)
    nothing = torch.zeros(2, 5, dtype=torch.bool)
    for _ in range(2):
        before = {name: value.clone() for name, value in quantizer.state_dict().items()}
        out = quantizer(x, nothing)
        (out.loss + out.quantized.sum()).backward()
        assert out.loss == 0 and not x.grad.any() and not out.quantized.any()
        assert out.usage_ratio == 0 and out.perplexity == 1
        assert all(torch.equal(before[k], v) for k, v in quantizer.state_dict().items())
        quantizer(torch.randn(9, 3))


def test_eval_changes_nothing() -> None:
    quantizer = VectorQuantizer(4, 3, temperature=1.0).eval()
    before = quantizer.codebook
    x = torch.randn(30, 3)
    assert torch.equal(quantizer(x).indices, quantizer(x).indices)
    assert torch.equal(quantizer.codebook, before)
    assert not quantizer.started
