"""`take_tokens` and `put_tokens`: inverse on members, exact zeros elsewhere, no gradient there."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jepakit import Masks, TokenSet, put_tokens, take_tokens
from jepakit.testing.strategies import token_sets

batched = st.integers(1, 2).flatmap(lambda axes: token_sets(num_batch_axes=axes))
seeds = st.integers(0, 2**31)


def grid_features(tokens: TokenSet, seed: int, dim: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    # Far from 0 everywhere, so that a zero in a result was put there.
    return 1 + torch.rand(tokens.shape[0], tokens.num_positions, dim, generator=generator)


@given(tokens=batched, seed=seeds)
def test_take_is_indexing(tokens, seed):
    """Trap: padded indices gather patch 0."""
    features = grid_features(tokens, seed)
    taken = take_tokens(features, tokens)
    assert taken.shape == (*tokens.shape, 3)
    assert torch.equal(taken[~tokens.valid], torch.zeros(int((~tokens.valid).sum()), 3))
    for entry in tokens.valid.nonzero().tolist():
        assert torch.equal(taken[tuple(entry)], features[entry[0], tokens.idx[tuple(entry)]])


@given(tokens=batched, seed=seeds)
def test_put_after_take_is_the_mask(tokens, seed):
    features = grid_features(tokens, seed)
    back = put_tokens(take_tokens(features, tokens), tokens)
    mask = tokens.to_mask().unsqueeze(-1)
    full = features.view(len(features), *[1] * (tokens.idx.dim() - 2), *features.shape[1:])
    assert torch.equal(back, torch.where(mask, full, 0))


@given(tokens=batched, seed=seeds)
def test_take_after_put_keeps_valid_entries(tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    entries = torch.randn(*tokens.shape, 2, generator=generator)
    grid = put_tokens(entries, tokens)
    assert grid.shape == (*tokens.shape[:-1], tokens.num_positions, 2)
    assert torch.equal(grid.ne(0).any(-1), tokens.to_mask())
    if tokens.idx.dim() == 2:
        expected = entries.masked_fill(~tokens.valid.unsqueeze(-1), 0)
        assert torch.equal(take_tokens(grid, tokens), expected)


@given(tokens=batched, seed=seeds)
def test_gradients_go_to_members_once_per_set(tokens, seed):
    features = grid_features(tokens, seed).requires_grad_()
    take_tokens(features, tokens).sum().backward()
    times = tokens.to_mask().view(len(tokens.idx), -1, tokens.num_positions).sum(1)
    assert torch.equal(features.grad, times[..., None].expand_as(features).float())

    entries = torch.randn(*tokens.shape, 2).requires_grad_()
    put_tokens(entries, tokens).sum().backward()
    assert torch.equal(entries.grad, tokens.valid[..., None].expand_as(entries).float())


@given(tokens=batched, bad=st.sampled_from([float("nan"), float("inf")]))
def test_nothing_bad_enters_or_leaves_at_padding(tokens, bad):
    """Law 6, also against 0 * NaN: padding is dropped, not multiplied by zero."""
    entries = torch.randn(*tokens.shape, 2).masked_fill(~tokens.valid.unsqueeze(-1), bad)
    entries.requires_grad_()
    grid = put_tokens(entries, tokens)
    assert grid.isfinite().all()
    # An upstream gradient of NaN at places that are no members stays there.
    grid.backward(torch.ones_like(grid).masked_fill(~tokens.to_mask().unsqueeze(-1), bad))
    assert torch.equal(entries.grad, tokens.valid[..., None].expand_as(entries).float())

    features = torch.ones(tokens.shape[0], tokens.num_positions, 2)
    used = tokens.to_mask().view(len(features), -1, features.shape[1]).any(1)
    features = features.masked_fill(~used.unsqueeze(-1), bad).requires_grad_()
    taken = take_tokens(features, tokens)
    assert taken.isfinite().all()
    taken.backward(torch.ones_like(taken).masked_fill(~tokens.valid.unsqueeze(-1), bad))
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes_stay(dtype):
    tokens = TokenSet.from_mask(torch.tensor([[True, False, True], [False, True, False]]), (3,))
    taken = take_tokens(torch.ones(2, 3, 4, dtype=dtype), tokens)
    assert taken.dtype == dtype
    assert put_tokens(taken, tokens).dtype == dtype


def test_features_need_not_be_contiguous():
    tokens = TokenSet.from_mask(torch.rand(3, 8) < 0.5, (2, 4))
    features = torch.randn(8, 5, 3).permute(2, 0, 1)
    assert torch.equal(take_tokens(features, tokens), take_tokens(features.contiguous(), tokens))
    entries = torch.randn(5, tokens.shape[1], 3).permute(2, 1, 0)
    assert torch.equal(put_tokens(entries, tokens), put_tokens(entries.contiguous(), tokens))


TOKENS = TokenSet.full((2, 3), (2,))


def raises(error: type[Exception], text: str) -> pytest.RaisesExc:
    return pytest.raises(error, match=f"^{re.escape(text)}$")


@pytest.mark.parametrize("length", [5, 7])
def test_take_wants_the_whole_grid(length):
    """Trap: indices gathered after CLS was put in front, without the shift."""
    text = (
        f"features (2, {length}, 4): must hold every position of the grid (2, 3), so be "
        "[batch, 6, dim]; strip class and register tokens first, and gather from the full grid only"
    )
    with raises(ValueError, text):
        take_tokens(torch.zeros(2, length, 4), TOKENS)


def test_batch_sizes_agree():
    text = "features has batch size 1, tokens 2: must be equal"
    with raises(ValueError, text):
        take_tokens(torch.zeros(1, 6, 4), TOKENS)
    with raises(ValueError, text):
        put_tokens(torch.zeros(1, 6, 4), TOKENS)


def test_put_wants_one_feature_for_each_entry():
    text = "features (2, 5, 4): must hold one feature vector for each entry of tokens (2, 6)"
    with raises(ValueError, text):
        put_tokens(torch.zeros(2, 5, 4), TOKENS)


@pytest.mark.no_hook
def test_wrong_kinds():
    with raises(TypeError, "features: must be floating point, got torch.int64"):
        take_tokens(torch.zeros(2, 6, 4, dtype=torch.int64), TOKENS)
    text = "must be [batch, ..., tokens, dim] and [batch, ..., n]"
    with raises(ValueError, f"features (2, 6) and tokens (2, 6): {text}"):
        take_tokens(torch.zeros(2, 6), TOKENS)
    with raises(ValueError, f"features (2, 6, 4) and tokens (6,): {text}"):
        put_tokens(torch.zeros(2, 6, 4), TokenSet.full((2, 3)))
    with pytest.raises(ValueError, match=re.escape("features (2, 6, 1, 4): must hold every")):
        take_tokens(torch.zeros(2, 6, 1, 4), TOKENS)


@pytest.mark.no_hook
@pytest.mark.parametrize("call", [take_tokens, put_tokens])
@pytest.mark.parametrize(
    ("tokens", "got"),
    [
        (Masks(TOKENS, TOKENS[:, None]), "jepakit.tokens.masks.Masks"),
        (TOKENS.to_mask(), "torch.Tensor"),
        (None, "NoneType"),
    ],
)
def test_tokens_of_another_kind(call, tokens, got):
    """Trap: all masks handed over, or a bool mask, where one token set is meant."""
    text = (
        "tokens: must be a TokenSet, such as masks.targets or "
        f"TokenSet.from_mask(mask, grid_size), got {got}"
    )
    with raises(TypeError, text):
        call(torch.zeros(2, 6, 4), tokens)


@pytest.mark.no_hook
def test_features_are_a_tensor():
    with raises(TypeError, "features: must be a torch.Tensor, got list"):
        take_tokens([[0.0]], TOKENS)


@pytest.mark.no_hook
def test_compiles_as_one_graph():
    """Law 14, for the ground floor: no graph break, padding known statically."""

    @torch.compile(fullgraph=True, backend="aot_eager")
    def there_and_back(features: torch.Tensor, tokens: TokenSet) -> torch.Tensor:
        return put_tokens(take_tokens(features, tokens), tokens)

    features = torch.randn(2, 6, 3)
    for mask in ([[True] * 6] * 2, [[True, False] * 3, [False, False, True] * 2]):
        tokens = TokenSet.from_mask(torch.tensor(mask), (2, 3))
        assert torch.equal(there_and_back(features, tokens), features * tokens.to_mask()[..., None])
