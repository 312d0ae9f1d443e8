"""`keyed_uniforms` and `derive_seed`: uniform, independent, a function of the own key alone."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jepakit.masking._engine.random_numbers import derive_seed, draw_uniforms, keyed_uniforms

keys64 = st.integers(-(2**63), 2**63 - 1)


@given(keys=st.lists(keys64, min_size=1, max_size=5), draws=st.integers(1, 20))
def test_a_row_depends_on_its_key_alone(keys, draws):
    table = keyed_uniforms(keys, draws)
    assert table.shape == (len(keys), draws) and table.dtype == torch.float32
    assert (table >= 0).all() and (table < 1).all()
    for row, key in zip(table, keys, strict=True):
        assert torch.equal(keyed_uniforms([key], draws)[0], row)
        # More numbers for another purpose leave the first ones as they were.
        assert torch.equal(keyed_uniforms([key], draws + 3)[0, :draws], row)


def test_splitmix64():
    """The first outputs of the published generator for seed 1234567, as fractions of 2^24."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert keyed_uniforms([1234567], 3)[0].tolist() == [(x >> 40) / 2**24 for x in published]


def test_rows_are_uniform_and_independent():
    """Neighbouring keys, as bad keys as there are; also the keys that a collator derives."""
    n, draws = 20_000, 6
    for keys in (list(range(n)), [derive_seed(0, 0, index) for index in range(n)]):
        table = keyed_uniforms(keys, draws).double()
        ideal = (torch.arange(n) + 0.5) / n
        for column in table.unbind(1):
            assert (column.sort().values - ideal).abs().max() < 2.7 / math.sqrt(n)
        # Between columns, and between a row and the next one.
        both = torch.cat([table[1:], table[:-1]], dim=1)
        correlation = torch.corrcoef(both.T) - torch.eye(2 * draws)
        assert correlation.abs().max() < 5 / math.sqrt(n)


@given(parts=st.lists(keys64, min_size=1, max_size=4))
def test_seeds_depend_on_every_part(parts):
    seed = derive_seed(*parts)
    assert derive_seed(*parts) == seed
    assert -(2**63) <= seed < 2**63
    for place in range(len(parts)):
        changed = list(parts)
        changed[place] ^= 1
        assert derive_seed(*changed) != seed
    assert derive_seed(*parts, 0) != seed
    if parts != parts[::-1]:
        assert derive_seed(*parts[::-1]) != seed


def test_seeds_do_not_collide():
    """Trap: seed + epoch + index, where the next epoch is the next sample."""
    seeds = {derive_seed(s, e, i) for s in range(10) for e in range(10) for i in range(100)}
    assert len(seeds) == 10_000


@pytest.mark.parametrize("batch_size", [0, -3])
def test_batch_size(batch_size):
    with pytest.raises(ValueError, match=f"batch_size={batch_size}: must be at least 1"):
        draw_uniforms(batch_size, 3)
