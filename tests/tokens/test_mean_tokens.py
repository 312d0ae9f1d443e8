"""`mean_tokens`: what is not valid is absent, also from the count."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jepakit import TokenSet, effective_rank, mean_tokens
from jepakit.testing.strategies import token_sets

batched = st.integers(1, 2).flatmap(lambda axes: token_sets(num_batch_axes=axes))


@given(tokens=batched, seed=st.integers(0, 2**31))
def test_is_the_mean_of_the_valid(tokens, seed):
    """Trap: the mean over a padded axis shrinks with the padding."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(*tokens.shape, 3, generator=generator)
    # Values at padding are not even read.
    features = torch.where(tokens.valid.unsqueeze(-1), features, torch.nan).requires_grad_()
    means = mean_tokens(features, tokens)
    assert means.shape == (*tokens.shape[:-1], 3)
    means.sum().backward()
    counts = tokens.counts().unsqueeze(-1).expand(tokens.shape)
    share = torch.where(tokens.valid, 1 / counts, 0).unsqueeze(-1).expand(*tokens.shape, 3)
    torch.testing.assert_close(features.grad, share)
    flat = zip(
        means.flatten(0, -2),
        features.flatten(0, -3) if features.dim() > 3 else features,
        tokens.valid.flatten(0, -2),
        strict=True,
    )
    for mean, rows, valid in flat:
        expected = rows[valid].mean(dim=0) if valid.any() else torch.zeros(3)
        torch.testing.assert_close(mean, expected)


def test_collapsed_features_have_no_rank_left():
    """Trap: `context.mean(dim=1)` of ragged contexts gives a full collapse the rank 1."""
    mask = torch.arange(9) < torch.tensor([[9], [6], [3], [8]])
    tokens = TokenSet.from_mask(mask, (3, 3))
    collapsed = tokens.valid.unsqueeze(-1) * torch.tensor([1.0, 2.0, 3.0])
    assert effective_rank(collapsed.mean(dim=1)) > 0.99
    assert effective_rank(mean_tokens(collapsed, tokens)) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_summed_in_float32(dtype):
    """577 tokens of 120 sum to more than float16 holds."""
    tokens = TokenSet.from_mask(
        torch.arange(600).expand(2, -1) < torch.tensor([[577], [3]]), (600,)
    )
    means = mean_tokens(torch.full((*tokens.shape, 1), 120.0, dtype=dtype), tokens)
    assert means.dtype == dtype
    assert torch.equal(means, torch.full((2, 1), 120.0, dtype=dtype))


def test_bad_shapes_raise():
    tokens = TokenSet.from_mask(torch.ones(2, 4, dtype=torch.bool), (2, 2))
    with pytest.raises(ValueError, match=r"features \(2, 3, 5\): must hold one feature vector for"):
        mean_tokens(torch.zeros(2, 3, 5), tokens)


@pytest.mark.no_hook
def test_bad_types_raise():
    tokens = TokenSet.from_mask(torch.ones(2, 4, dtype=torch.bool), (2, 2))
    with pytest.raises(TypeError, match=r"features: must be floating point, got torch\.int64"):
        mean_tokens(torch.zeros(2, 4, 5, dtype=torch.int64), tokens)
    with pytest.raises(TypeError, match=r"tokens: must be a .*TokenSet"):
        mean_tokens(torch.zeros(2, 4, 5), tokens.valid)
