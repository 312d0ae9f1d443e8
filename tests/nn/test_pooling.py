"""Laws of the pools and of `SetEncoder`: padding, order, and that they are what they say."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from jepakit import EMATeacher
from jepakit.nn import AttentionPool, SetEncoder, TemporalPool
from jepakit.testing import assert_order_contract, assert_set_contract

DIM = 8
MODES = ["attention", "softmax", "last"]
POOLS = {
    "set": lambda: AttentionPool(DIM),
    "set, queries": lambda: AttentionPool(DIM, 3, num_heads=2),
    "encoder": lambda: SetEncoder(DIM, 12, 2, num_heads=2),
    **{mode: lambda mode=mode: TemporalPool(DIM, 12, mode=mode) for mode in MODES},
}
EVERY = pytest.mark.parametrize("kind", POOLS)


def build(kind: str) -> nn.Module:
    """Far from the initial values, at which blocks do little and biases nothing."""
    pool = POOLS[kind]().eval()
    with torch.no_grad():
        for parameter in pool.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.15)
    return pool


@settings(max_examples=6)
@given(
    st.integers(0, 2**31),
    st.sampled_from([(4, 1), (8, 2), (8, 4), (9, 3)]),
    st.integers(2, 6),
    st.integers(3, 9),
    st.integers(1, 3),
)
def test_sets_keep_their_contract(seed, widths, batch, size, queries) -> None:
    """Laws 5 and 6 and no order, any pattern of `valid`. Traps: padded keys are attended to; a
    mean over the padded size; `valid` taken as a length."""
    torch.manual_seed(seed)
    dim, heads = widths
    arguments = {"batch_size": batch, "set_size": size, "seed": seed}
    assert_set_contract(AttentionPool(dim, queries, num_heads=heads), dim, **arguments)
    encoder = SetEncoder(3, dim, queries, num_heads=heads)
    assert_set_contract(encoder, 3, **arguments)
    assert_set_contract(encoder.encode_entries, 3, per_entry=True, **arguments)


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=8)
@given(
    st.integers(0, 2**31), st.sampled_from([4, 7, 8, 64]), st.integers(3, 9), st.integers(2, 400)
)
def test_sequences_keep_their_order(mode, seed, dim, steps, room) -> None:
    """Law 16 at initialisation, for any width and length. Trap: a mean over time."""
    torch.manual_seed(seed)
    heads = {"num_heads": 1 if dim % 4 else 4} if mode == "attention" else {}
    pool = TemporalPool(dim, steps + room, mode=mode, **heads)
    assert_order_contract(pool, dim, max_steps=steps, seed=seed)


def naive_attention(pool: nn.Module, steps: Tensor, scores: Tensor | None = None) -> Tensor:
    """Queries and heads one at a time, over what is there."""
    attention = pool.attention
    dim, heads = steps.shape[1], attention.num_heads
    width = dim // heads
    keys, values = attention.key_value(steps).split(dim, dim=1)
    pooled = []
    for query in attention.query:
        parts = []
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            logits = keys[:, part] @ query[part] / math.sqrt(width)
            if scores is not None:
                logits = logits + scores[h]
            parts.append(logits.softmax(dim=0) @ values[:, part])
        pooled.append(attention.proj(torch.cat(parts)))
    return torch.stack(pooled)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), kind=st.sampled_from(["set", "set, queries", *MODES]))
@torch.no_grad()
def test_equals_the_formula(seed: int, kind: str) -> None:
    """One sequence at a time, in loops. Traps: weights for each channel, padding in the softmax."""
    torch.manual_seed(seed)
    pool = build(kind)
    features, valid = torch.randn(4, 6, DIM), torch.rand(4, 6) < 0.6
    out = pool(features, valid)
    for row, present, found in zip(features, valid, out, strict=True):
        x, number = row[present], present.nonzero()[:, 0]
        if not len(x):
            expected = torch.zeros_like(found)
        elif kind == "last":
            expected = x[-1]
        elif kind == "softmax":
            weights = [math.exp(pool.scores[i]) for i in number]
            expected = sum(w * step for w, step in zip(weights, x, strict=True)) / sum(weights)
        elif kind == "attention":
            steps = pool.norm(x) + pool.positions[number]
            expected = naive_attention(pool, steps, pool.scores[:, number])[0]
        else:
            expected = naive_attention(pool, pool.norm(x)).squeeze(0)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_one_weight_for_each_step() -> None:
    """Trap: attention weights for each channel. One for each step, shared and masked, they sum to
    1 over what is there."""
    pool = TemporalPool(DIM, 5, mode="softmax")
    assert [tuple(p.shape) for p in pool.parameters()] == [(5,)]
    valid = torch.tensor([[True, False, True, True, False]])
    weights = torch.stack([pool(torch.eye(5, DIM)[None], valid)[0, i] for i in range(5)])
    torch.testing.assert_close(weights, torch.tensor([1.0, 0, 3, 4, 0]) / 8)


@EVERY
def test_padding_gives_and_gets_nothing(kind: str) -> None:
    """Law 6, NaN included, in front, between and behind."""
    pool = build(kind)
    valid = torch.tensor([[0, 1, 1, 0, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    clean = torch.randn(3, 5, DIM)
    found = []
    for filler in (0.0, math.nan, math.inf):
        pool.zero_grad()
        features = clean.masked_fill(~valid[..., None], filler).requires_grad_()
        out = pool(features, valid)
        (out * torch.arange(out.numel()).view_as(out)).sum().backward()
        assert not out[2].any(), "an empty set is zero"
        assert not features.grad[~valid].any()
        assert (features.grad[valid] != 0).any(dim=1)[[2 if kind == "last" else 0]].all()
        found.append([out, features.grad, *(p.grad for p in pool.parameters())])
    for poisoned in found[1:]:
        for ours, theirs in zip(poisoned, found[0], strict=True):
            assert torch.equal(ours, theirs)


@EVERY
@pytest.mark.parametrize("shape", [(2, 0), (0, 4), (2, 3, 0), (2, 3, 4), (3, 1, 2, 5)])
def test_any_number_of_batch_axes_and_entries(kind: str, shape: tuple[int, ...]) -> None:
    """Also none. A batch of batches equals the sets one after another."""
    pool = build(kind)
    features, valid = torch.randn(*shape, DIM, requires_grad=True), torch.rand(shape) < 0.5
    out = pool(features, valid)
    assert out.shape[: len(shape) - 1] == shape[:-1]
    if shape[-1] == 0:
        assert not out.any()
    if not out.numel():
        return
    out.sum().backward()  # with a graph, also of no entry: DDP waits for every parameter
    assert all(p.grad is not None and p.grad.isfinite().all() for p in pool.parameters())
    if shape[-1]:
        alone = torch.stack([pool(x[None], v[None])[0] for x, v in zip(
            features.flatten(0, -3), valid.flatten(0, -2), strict=True)])  # fmt: skip
        torch.testing.assert_close(out.flatten(0, len(shape) - 2), alone, rtol=1e-4, atol=1e-5)
        everything = torch.ones_like(valid)
        torch.testing.assert_close(pool(features), pool(features, everything))


@EVERY
def test_context_attention_trains_is_averaged_and_saved(kind: str) -> None:
    """The pool is a part of the model as any other. Traps: the aggregator is not handed to the
    optimiser, is not in the teacher, is not in the checkpoint."""
    student = nn.Sequential(nn.Linear(DIM, DIM), build(kind))
    teacher = EMATeacher(student, momentum=0.5)
    features, target = torch.randn(16, 6, DIM), torch.randn(16, 1)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    losses = []
    for _ in range(60):
        loss = (student(features).flatten(1)[:, :1] - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    learned = dict(student.named_parameters())
    assert all(not torch.equal(before[name], p) for name, p in learned.items())

    teacher.update(student)
    for name, parameter in teacher.module.named_parameters():
        expected = (before[name] + learned[name]) / 2
        torch.testing.assert_close(parameter, expected, rtol=1e-5, atol=1e-6)

    torch.manual_seed(1)
    other = nn.Sequential(nn.Linear(DIM, DIM), POOLS[kind]())
    other.load_state_dict(student.state_dict())
    with torch.no_grad():
        expected = student(features)
        for same in (other, copy.deepcopy(student), pickle.loads(pickle.dumps(student))):
            assert torch.equal(same.eval()(features), expected)


def test_attention_finds_the_one_step_that_matters() -> None:
    """A mean cannot: among noise, one entry is marked by its first feature."""
    torch.manual_seed(0)

    def batch() -> tuple[Tensor, Tensor]:
        x = torch.randn(64, 12, DIM)
        x[..., 0] = 0
        marked = torch.randint(0, 12, (64,))
        x[torch.arange(64), marked, 0] = 4
        return x, x[torch.arange(64), marked, 1]

    pool, read = AttentionPool(DIM, num_heads=1), nn.Linear(DIM, 1)
    optimizer = torch.optim.Adam([*pool.parameters(), *read.parameters()], lr=0.01)
    for _ in range(300):
        x, y = batch()
        loss = (read(pool(x)).squeeze(1) - y).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    x, y = batch()
    assert (read(pool(x)).squeeze(1) - y).square().mean() < 0.4 * y.square().mean()


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="num_heads=3: must divide dim=8"):
        AttentionPool(8, num_heads=3)
    with pytest.raises(ValueError, match="num_heads=3: must divide dim=8"):
        SetEncoder(4, 8, 1, num_heads=3)
    with pytest.raises(ValueError, match="num_heads=2: must be None with mode='last'"):
        TemporalPool(8, 4, mode="last", num_heads=2)


@pytest.mark.no_hook
def test_wrong_shapes() -> None:
    """Without the hook, which would refuse them first."""
    with pytest.raises(ValueError, match="mode='mean': must be one of"):
        TemporalPool(8, 4, mode="mean")
    pool = TemporalPool(8, 4)
    with pytest.raises(ValueError, match="must have at most max_len=4 steps"):
        pool(torch.randn(2, 5, 8))
    with pytest.raises(ValueError, match=r"features \(2, 8\): must be \[\*batch, n, 8\]"):
        pool(torch.randn(2, 8))
    with pytest.raises(ValueError, match=r"features \(2, 3, 7\): must be \[\*batch, n, 8\]"):
        pool(torch.randn(2, 3, 7))
    with pytest.raises(ValueError, match="nothing is broadcast"):
        pool(torch.randn(2, 3, 8), torch.ones(3, dtype=torch.bool))
    with pytest.raises(TypeError, match="valid: must be bool"):
        pool(torch.randn(2, 3, 8), torch.ones(2, 3))
    with pytest.raises(TypeError, match="features: must be floating point"):
        pool(torch.ones(2, 3, 8, dtype=torch.long))


def test_every_argument_matters() -> None:
    """Law 12."""
    features = torch.randn(2, 6, 8)

    def out(make) -> Tensor:
        torch.manual_seed(0)
        return make()(features)

    base = out(lambda: TemporalPool(8, 8))
    assert not torch.equal(base, out(lambda: TemporalPool(8, 8, num_heads=2)))
    assert len({tuple(out(lambda m=m: TemporalPool(8, 8, mode=m))[0].tolist()) for m in MODES}) == 3
    base = out(lambda: SetEncoder(8, 8, 1))
    for change in ({"depth": 2}, {"num_heads": 2}, {"mlp_ratio": 2.0}):
        other = out(
            lambda change=change: SetEncoder(**{"in_dim": 8, "dim": 8, "depth": 1} | change)
        )
        assert not torch.equal(base, other)
    assert not torch.equal(
        out(lambda: AttentionPool(8)), out(lambda: AttentionPool(8, num_heads=2))
    )
