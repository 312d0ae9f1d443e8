"""`Masks`: a pytree of token sets that passes through copies and a `DataLoader`."""

import copy
import pickle

import torch
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from jepakit import Masks, MultiBlockMask, TokenSet


def ragged() -> Masks:
    sampler = MultiBlockMask((6, 8), target_size_per="sample", context_length="pad")
    masks = sampler(5, generator=torch.Generator().manual_seed(0))
    assert masks.context.padded and masks.targets.padded
    return masks


def same(one: Masks, other: Masks) -> bool:
    pairs = zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True)
    flags = [(m.context.padded, m.targets.padded, m.context.grid_size) for m in (one, other)]
    return all(torch.equal(a, b) for a, b in pairs) and flags[0] == flags[1]


def test_copies():
    masks = ragged()
    for twin in (copy.deepcopy(masks), copy.copy(masks), pickle.loads(pickle.dumps(masks))):
        assert same(twin, masks)


def test_files_load_without_code(tmp_path):
    """Trap: a file of masks, or an exported program that takes them, is refused by `torch.load`."""
    masks = ragged()
    torch.save({"masks": masks, "context": masks.context}, tmp_path / "masks.pt")
    loaded = torch.load(tmp_path / "masks.pt", weights_only=True)
    assert same(loaded["masks"], masks) and isinstance(loaded["context"], TokenSet)


def test_pytree():
    masks = ragged()
    leaves, spec = pytree.tree_flatten(masks)
    assert [leaf.dtype for leaf in leaves] == [torch.int64, torch.bool] * 2
    twin = pytree.tree_unflatten([leaf.clone() for leaf in leaves], spec)
    assert isinstance(twin, Masks) and isinstance(twin.context, TokenSet) and same(twin, masks)


def test_moving_moves_all():
    masks = ragged()
    assert same(masks.to("cpu"), masks)
    away = masks.to("meta", non_blocking=True)
    assert {leaf.device.type for leaf in pytree.tree_leaves(away)} == {"meta"}
    assert away.targets.shape == masks.targets.shape


def test_pin_memory_pins_all(monkeypatch):
    pinned = []
    monkeypatch.setattr(
        torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self.clone()
    )
    masks = ragged()
    assert same(masks.pin_memory(), masks)
    assert len(pinned) == 4


def first(batch: list[Masks]) -> Masks:
    return batch[0]


def test_comes_whole_out_of_a_worker():
    masks = ragged()
    loader = DataLoader([masks, masks], batch_size=1, collate_fn=first, num_workers=1)
    for received in loader:
        assert same(received, masks)
