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


BAD_NUMBERS = {
    "NaN": ((float("nan"),), (0.2,), r"mean\[0\]=nan: must be finite"),
    "infinity": ((0.5,), (float("inf"),), r"std\[0\]=inf: must be finite"),
    "NaN std": ((0.5,), (np.nan,), r"std\[0\]=nan: must be finite"),
    "zero": ((0.5, 0.5), (0.2, 0), r"std\[1\]=0: must be above 0"),
    "text": ((0.5,), ("0.2",), r"std\[0\]='0.2': must be a number, got str"),
    "one text": ("0.5", (0.2,), "mean='0.5': must be a sequence of numbers, got str"),
    "none": ((None,), (0.2,), r"mean\[0\]=None: must be a number"),
    "of bytes": ((124.0,), (58.0,), r"mean=\(124.0,\): must lie in \[0, 1\].* divide .* by 255"),
    "of -1 to 1": ((-0.1,), (0.2,), r"mean=\(-0.1,\): must lie in \[0, 1\]"),
}


@pytest.mark.no_hook
@pytest.mark.parametrize("case", BAD_NUMBERS)
def test_numbers_that_standardise_nothing_are_refused(case):
    """Trap: statistics of a set with NaN, or of bytes from 0 to 255."""
    mean, std, text = BAD_NUMBERS[case]
    with pytest.raises((TypeError, ValueError), match=text):
        PixelStatistics(mean, std)


@pytest.mark.no_hook
@pytest.mark.parametrize(
    ("images", "text"),
    [
        ([], "dataset: must hold at least one image"),
        ([torch.zeros(3, 4, 4)], "image 0 of the dataset: must be uint8, got torch.float32"),
        ([torch.zeros(3, 0, 4, dtype=torch.uint8)], r"image 0 of the dataset \(3, 0, 4\): must be"),
        ([torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(3, 4, 5, dtype=torch.uint8)],
         r"image 1 of the dataset \(3, 4, 5\): .*all of one size, before it \(3, 4, 4\)"),
    ],
)  # fmt: skip
def test_images_of_another_kind_are_refused(images, text):
    """Trap: floats from 0 to 1 divided by 255."""
    with pytest.raises((TypeError, ValueError), match=text):
        PixelStatistics.from_dataset([(image, 0) for image in images])


def test_images_need_no_labels():
    pairs = dataset()
    alone = TensorDataset(pairs.tensors[0])
    assert PixelStatistics.from_dataset(alone) == PixelStatistics.from_dataset(pairs)
