"""`digit_canvases`: a small labelled image set that needs no download."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset

from jepakit._checks import as_int

__all__ = ["digit_canvases"]

_SIDE = 32  # of a canvas, pixels
_QUADRANTS = ((0, 0), (0, 16), (16, 0), (16, 16))  # top left corners
_DIGIT_SIDES = range(14, 17)


def digit_canvases(
    num_train: int = 6000, num_test: int = 1500
) -> tuple[TensorDataset, TensorDataset]:
    """Training and test canvases, each with four of scikit-learn's digits of one class, its label.

    Canvases are uint8 `[1, 32, 32]`. Each is rolled at random, so that no single pixel is
    informative, and has its own contrast, brightness and noise, which dominate the features of an
    untrained encoder and say nothing about the class. Training and test canvases show different
    handwritten digits. The same arguments give the same canvases.

    Args:
        num_train: Number of training canvases.
        num_test: Number of test canvases.

    Raises:
        ImportError: If scikit-learn is missing.

    Example:
        >>> from jepakit.data import digit_canvases
        >>> train, test = digit_canvases(num_train=20, num_test=5)
        >>> train[0][0].shape, len(test)
        (torch.Size([1, 32, 32]), 5)

    Source:
        scikit-learn's copy of the UCI set "Optical Recognition of Handwritten Digits" (1998).
    """
    num_train = as_int("num_train", num_train, minimum=1)
    num_test = as_int("num_test", num_test, minimum=1)
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "digit_canvases needs scikit-learn: pip install 'jepakit[evaluation]'"
        ) from error

    source = load_digits()
    generator = torch.Generator().manual_seed(0)
    with torch.device("cpu"):  # whatever the default device is
        # Shuffled before the split: in the source's order the last digits are by other writers.
        order = torch.randperm(len(source.target), generator=generator)
        digits = torch.tensor(source.images)[order, None] / 16
        labels = torch.tensor(source.target)[order]
        split = len(digits) * 3 // 4
        train = _canvases(digits[:split], labels[:split], num_train, generator)
        return train, _canvases(digits[split:], labels[split:], num_test, generator)


def _canvases(
    digits: Tensor, labels: Tensor, count: int, generator: torch.Generator
) -> TensorDataset:
    resized = {side: F.interpolate(digits, (side, side), mode="bilinear") for side in _DIGIT_SIDES}
    members = [(labels == label).nonzero()[:, 0] for label in range(10)]  # of each class
    classes = torch.randint(10, (count,), generator=generator)
    images = torch.zeros(count, 1, _SIDE, _SIDE, dtype=torch.uint8)

    def draw(low: int, high: int, number: int = 1) -> list[int]:
        drawn: list[int] = torch.randint(low, high, (number,), generator=generator).tolist()
        return drawn

    for image, label in zip(images, classes.tolist(), strict=True):
        for y, x in _QUADRANTS:
            (member,) = draw(0, len(members[label]))
            (side,) = draw(_DIGIT_SIDES.start, _DIGIT_SIDES.stop)
            top, left = draw(0, 17 - side, 2)
            region = image[0, y + top :, x + left :][:side, :side]
            region.copy_((resized[side][members[label][member], 0] * 255).round())
        down, right = draw(0, _SIDE, 2)
        image.copy_(image.roll((down, right), dims=(1, 2)))
    per_image = (count, 1, 1, 1)
    contrast = 0.4 + 0.6 * torch.rand(per_image, generator=generator, dtype=torch.float32)
    black = torch.rand(per_image, generator=generator, dtype=torch.float32) * (1 - contrast)
    noise = 0.15 * torch.randn(images.shape, generator=generator, dtype=torch.float32)
    noisy = (images.float() / 255 * contrast + black + noise).clamp(0, 1)
    return TensorDataset((noisy * 255).round().byte(), classes)
