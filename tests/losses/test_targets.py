"""`normalize_targets`: what each kind promises, with nothing learned and no NaN."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from jepakit.losses import normalize_targets


@given(
    shape=st.lists(st.integers(1, 4), min_size=0, max_size=3),
    dim=st.integers(2, 8),
    seed=st.integers(0, 2**31),
)
def test_each_vector_is_normalised_by_itself(shape: list[int], dim: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    x = 3 + 2 * torch.randn(*shape, dim, dtype=torch.float64, generator=random)
    layer, l2 = normalize_targets(x, "layer"), normalize_targets(x, "l2")
    deviation = (x.var(dim=-1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(layer, (x - x.mean(dim=-1, keepdim=True)) / deviation)
    torch.testing.assert_close(l2 * x.norm(dim=-1, keepdim=True), x)
    torch.testing.assert_close(l2.norm(dim=-1), torch.ones(shape, dtype=torch.float64))


def test_layer_is_the_default() -> None:
    x = torch.randn(3, 5)
    assert torch.equal(normalize_targets(x), normalize_targets(x, "layer"))


def test_none_changes_nothing() -> None:
    """The I-JEPA paper predicts the features as they are."""
    x = torch.randn(3, 5)
    assert normalize_targets(x, "none") is x


@pytest.mark.parametrize("kind", ["layer", "l2", "none"])
def test_zero_vectors_stay_zero(kind: str) -> None:
    """Law 6: padding comes out as exact zeros."""
    assert torch.equal(normalize_targets(torch.zeros(2, 3, 4), kind), torch.zeros(2, 3, 4))


@pytest.mark.parametrize("kind", ["layer", "l2"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_are_computed_in_float32(kind: str, dtype: torch.dtype) -> None:
    """In fp16 the square of 300 is infinite."""
    x = (300 * torch.randn(4, 64)).to(dtype)
    y: Tensor = normalize_targets(x, kind)
    assert y.dtype == dtype
    assert torch.equal(y, normalize_targets(x.float(), kind).to(dtype))


@pytest.mark.no_hook
def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match="kind='batch': must be one of 'layer', 'l2', 'none'"):
        normalize_targets(torch.zeros(2, 3), "batch")


@pytest.mark.no_hook
def test_integers_are_refused() -> None:
    with pytest.raises(TypeError, match=r"features: must be floating point, got torch\.int64"):
        normalize_targets(torch.zeros(2, 3, dtype=torch.int64))


@pytest.mark.no_hook
def test_a_scalar_is_refused() -> None:
    with pytest.raises(ValueError, match=r"features \(\): must have the shape"):
        normalize_targets(torch.zeros(()))


def test_layer_of_single_entries_is_refused() -> None:
    """It would turn every target into 0, and the loss would look fine."""
    with pytest.raises(
        ValueError, match=r"kind='layer' with features \(4, 1\): must have at least 2"
    ):
        normalize_targets(torch.ones(4, 1), "layer")
