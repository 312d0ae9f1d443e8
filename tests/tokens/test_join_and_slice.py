"""Slices and joins: `masks[i:j]`, `len`, `Masks.cat`, `TokenSet.cat`, `TokenSet.from_indices`."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from jepakit import Masks, MultiBlockMask, RandomMask, TokenSet
from jepakit.testing.strategies import flat_masks, token_sets


def ragged(batch: int, seed: int = 0) -> Masks:
    sampler = MultiBlockMask((6, 8), target_size_per="sample", context_length="pad")
    return sampler(batch, generator=torch.Generator().manual_seed(seed))


def same(one: Masks, other: Masks) -> bool:
    return all(map(torch.equal, pytree.tree_leaves(one), pytree.tree_leaves(other)))


@given(cuts=st.lists(st.integers(0, 7), max_size=4), seed=st.integers(0, 9))
def test_joined_slices_are_the_whole(cuts, seed):
    """Trap: Accelerate slices and joins batches; an object that it cannot slice stays whole."""
    masks = ragged(7, seed)
    ends = [0, *sorted(cuts), 7]
    parts = [masks[i:j] for i, j in pairwise(ends)]
    assert sum(map(len, parts)) == len(masks) == 7
    joined = Masks.cat(parts)
    assert same(joined, masks)
    assert joined.grid_size == masks.grid_size == (6, 8)
    assert joined.context.padded == masks.context.padded


def test_join_pads_to_the_longest():
    short, long = (RandomMask((4, 4), target_ratio=ratio)(2) for ratio in (0.75, 0.5))
    joined = Masks.cat([short, long])
    assert joined.context.shape == (4, 8) and joined.context.padded
    assert joined.context.counts().tolist() == [4, 4, 8, 8]
    assert torch.equal(joined.context.to_mask()[:2], short.context.to_mask())
    assert torch.equal(joined.targets.to_mask()[2:], long.targets.to_mask())
    assert not Masks.cat([short, short]).context.padded


@given(tokens=token_sets(num_batch_axes=2))
def test_a_set_is_joined_of_its_members(tokens):
    members = [tokens[i : i + 1] for i in range(len(tokens))]
    if members:
        assert torch.equal(TokenSet.cat(members).to_mask(), tokens.to_mask())


@given(case=flat_masks(num_batch_axes=1), seed=st.integers(0, 9))
def test_indices_in_any_order_and_twice(case, seed):
    mask, grid = case
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for row in mask:
        idx = row.nonzero().flatten()
        idx = torch.cat([idx, idx[:1]])  # an index that is listed twice counts once
        rows.append(idx[torch.randperm(len(idx), generator=generator)].to(torch.int32))
    if rows:
        assert torch.equal(TokenSet.from_indices(rows, grid).to_mask(), mask)
    for row, idx in zip(mask, rows, strict=True):
        assert torch.equal(TokenSet.from_indices(idx, grid).to_mask(), row)


def test_one_sample_has_no_batch_axis():
    masks = ragged(3)
    one = masks[1]
    assert one.context.shape == masks.context.shape[1:]
    assert [len(sample.targets) for sample in masks] == [4, 4, 4]
    with pytest.raises(TypeError, match="no batch axis"):
        len(one)
    with pytest.raises(TypeError, match="must be one index, of the batch"):
        masks[0, 1]


@pytest.mark.parametrize(
    ("build", "error", "text"),
    [
        (lambda: Masks.cat([]), ValueError, r"parts=\[\]: must hold at least one"),
        (lambda: TokenSet.cat([]), ValueError, r"sets=\[\]: must hold at least one"),
        (
            lambda: TokenSet.cat([TokenSet.full((2, 2), (1,)), TokenSet.full((4,), (1,))]),
            ValueError,
            r"sets\[1\] is on the grid \(4,\), sets\[0\] on \(2, 2\): must be on one grid",
        ),
        (
            lambda: Masks.cat([RandomMask((4, 4))(1), MultiBlockMask((4, 4))(1)]),
            ValueError,
            r"sets\[1\] .*: must have the batch axes of sets\[0\]",
        ),
        (
            lambda: TokenSet.cat([TokenSet.full((2, 2))]),
            ValueError,
            r"sets\[0\] \(4,\): must have a batch axis",
        ),
        (
            lambda: TokenSet.from_indices(torch.tensor([[4]]), (2, 2)),
            ValueError,
            r"indices: must lie on the grid \(2, 2\), in \[0, 3\], got values from 4 to 4",
        ),
        (
            lambda: TokenSet.from_indices(torch.ones(1, 4, dtype=torch.bool), (2, 2)),
            TypeError,
            "indices: must be positions, as signed integers, got torch.bool; for a mask",
        ),
    ],
)
@pytest.mark.no_hook
def test_what_cannot_be_joined(build, error, text):
    with pytest.raises(error, match=text):
        build()


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_fabric_in_half_precision_moves_masks(precision):
    """Trap: Lightning's half-precision plugins refuse a frozen dataclass in a batch."""
    fabric = pytest.importorskip("lightning.fabric")
    loader = DataLoader([(torch.rand(3), ragged(2))] * 2, batch_size=None)
    trainer = fabric.Fabric(accelerator="cpu", devices=1, precision=precision)
    for _, masks in trainer.setup_dataloaders(loader):
        assert isinstance(masks, Masks) and same(masks, ragged(2))
        converted = trainer._precision.convert_input((torch.rand(2), masks))
        assert same(converted[1], masks)


@pytest.mark.no_hook
def test_joins_and_slices_compile_as_one_graph():
    masks = ragged(4)

    def step(masks: Masks) -> torch.Tensor:
        joined = Masks.cat([masks[:1], masks[1:]])
        return joined.targets.idx.sum() + len(joined) + joined.grid_size[0]

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(masks), step(masks))


@pytest.mark.no_hook
def test_iteration_compiles():
    """Trap: iteration that ends at an IndexError, which a compiled loop does not catch."""
    masks = ragged(3)

    def total(masks: Masks) -> torch.Tensor:
        return torch.stack([sample.targets.idx.sum() for sample in masks]).sum()

    assert torch.equal(torch.compile(total, backend="eager")(masks), total(masks))


@pytest.mark.no_hook
@pytest.mark.parametrize("index", ["context", 1.5, True])
def test_what_is_no_index(index):
    with pytest.raises(TypeError, match=f"^index={index!r}: must be an int, a slice or a vector$"):
        ragged(2)[index]


@pytest.mark.no_hook
@pytest.mark.parametrize("shape", [2, (-1,), {1, 2}])
def test_batch_shape(shape):
    with pytest.raises((TypeError, ValueError), match=r"^batch_shape.*: must be "):
        TokenSet.full((4, 4), shape)


def test_masks_are_immutable():
    masks = ragged(2)
    with pytest.raises(AttributeError, match="context: Masks are immutable"):
        masks.context = masks.context
    with pytest.raises(AttributeError, match="targets: Masks are immutable"):
        del masks.targets
