"""`PixelStatistics`: standardised images have mean 0 and standard deviation 1."""

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from jepakit.data import PixelStatistics


def dataset(count: int = 30) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 2, 6, 4), generator=generator, dtype=torch.uint8)
    images[:, 1] //= 4
    return TensorDataset(images, torch.zeros(count).long())


def test_standardises_every_channel():
    images = dataset().tensors[0]
    out = PixelStatistics.from_dataset(dataset())(images)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std((0, 2, 3)), torch.ones(2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("order", ["class after class", "round the classes"])
def test_some_images_stand_for_all_of_them(order):
    """Trap: the first images of a sorted set, and every tenth one of a set that alternates."""
    labels = torch.arange(200) // 100 if order == "class after class" else torch.arange(200) % 2
    images = (255 * labels).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    few = PixelStatistics.from_dataset(TensorDataset(images, labels), num_images=40)
    assert few.mean == pytest.approx((0.5,), abs=0.15)
    assert few == PixelStatistics.from_dataset(TensorDataset(images, labels), num_images=40)


def test_a_constant_channel_is_centred():
    flat = TensorDataset(torch.full((4, 1, 2, 2), 7, dtype=torch.uint8), torch.zeros(4))
    assert PixelStatistics.from_dataset(flat)(flat.tensors[0]).abs().max() < 1e-3


@pytest.mark.no_hook
def test_wrong_images_raise():
    """Trap: floats in 0 to 1 that are divided by 255 once more."""
    standardise = PixelStatistics(mean=(0.5,), std=(0.2,))
    with pytest.raises(TypeError, match=r"images: must be uint8, got torch\.float32"):
        standardise(torch.rand(1, 1, 2, 2))
    with pytest.raises(ValueError, match="with 1 channels"):
        standardise(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.1, 0.1)), ((0.5,), (0.0,)), ((), ())])
def test_wrong_numbers_raise(mean, std):
    with pytest.raises(ValueError, match=r"std(\[0\])?="):
        PixelStatistics(mean=mean, std=std)


@pytest.mark.no_hook
@pytest.mark.parametrize("kind", [list, np.array])
def test_numbers_of_any_kind(kind):
    """Values of a configuration file are stored as plain numbers, which `repr` shows."""
    statistics = PixelStatistics(kind([0.5, 0.25]), kind([1, 0.5]))
    assert repr(statistics) == "PixelStatistics(mean=(0.5, 0.25), std=(1.0, 0.5))"
    assert hash(statistics) == hash(PixelStatistics((0.5, 0.25), (1.0, 0.5)))
