"""`digit_canvases`: images that need no download, and that an untrained encoder cannot solve."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset

from jepakit._checks import check_int

__all__ = ["digit_canvases"]

_SIDE = 32
_CORNERS = ((0, 0), (0, 16), (16, 0), (16, 16))
_SIZES = range(14, 17)


def digit_canvases(
    num_train: int = 6000, num_test: int = 1500
) -> tuple[TensorDataset, TensorDataset]:
    """32 x 32 canvases with four of scikit-learn's digits, all of one class, which is the label.

    Each is rolled at random, so that no pixel knows anything by itself, and has a contrast, a
    brightness and noise of its own: they fill the features of an untrained encoder, and none of
    them helps to predict one part of a canvas from another. The test canvases show other
    handwritten digits than the training canvases. Always the same ones, for the same numbers.

    Args:
        num_train: Training canvases.
        num_test: Test canvases.

    Raises:
        ImportError: If scikit-learn is missing.
        ValueError: If a number is below 1.

    Returns:
        Training and test set of `(uint8 image [1, 32, 32], label)`.

    Example:
        >>> from jepakit.data import digit_canvases
        >>> train, test = digit_canvases(num_train=20, num_test=5)
        >>> train[0][0].shape, len(test)
        (torch.Size([1, 32, 32]), 5)

    Source:
        jepakit's own, from the UCI digits that come with scikit-learn.
    """
    check_int("num_train", num_train, minimum=1)
    check_int("num_test", num_test, minimum=1)
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "digit_canvases needs scikit-learn: pip install 'jepakit[evaluation]'"
        ) from error

    source = load_digits()
    generator = torch.Generator().manual_seed(0)
    # In their own order the last digits are those of other writers.
    with torch.device("cpu"):  # whatever is the default
        order = torch.randperm(len(source.target), generator=generator)
        digits = torch.tensor(source.images)[order, None] / 16
        labels = torch.tensor(source.target)[order]
        split = len(digits) * 3 // 4
        train = _canvases(digits[:split], labels[:split], num_train, generator)
        return train, _canvases(digits[split:], labels[split:], num_test, generator)


def _canvases(
    digits: Tensor, labels: Tensor, count: int, generator: torch.Generator
) -> TensorDataset:
    sized = {side: F.interpolate(digits, (side, side), mode="bilinear") for side in _SIZES}
    members = [(labels == label).nonzero()[:, 0] for label in range(10)]
    classes = torch.randint(10, (count,), generator=generator)
    images = torch.zeros(count, 1, _SIDE, _SIDE, dtype=torch.uint8)

    def draw(low: int, high: int, number: int = 1) -> list[int]:
        drawn: list[int] = torch.randint(low, high, (number,), generator=generator).tolist()
        return drawn

    for image, label in zip(images, classes.tolist(), strict=True):
        for y, x in _CORNERS:
            (which,) = draw(0, len(members[label]))
            (side,) = draw(_SIZES.start, _SIZES.stop)
            top, left = draw(0, 17 - side, 2)
            place = image[0, y + top :, x + left :][:side, :side]
            place.copy_((sized[side][members[label][which], 0] * 255).round())
        down, right = draw(0, _SIDE, 2)
        image.copy_(image.roll((down, right), dims=(1, 2)))
    one = (count, 1, 1, 1)
    contrast = 0.4 + 0.6 * torch.rand(one, generator=generator, dtype=torch.float32)
    dark = torch.rand(one, generator=generator, dtype=torch.float32) * (1 - contrast)
    noise = 0.15 * torch.randn(images.shape, generator=generator, dtype=torch.float32)
    noisy = (images.float() / 255 * contrast + dark + noise).clamp(0, 1)
    return TensorDataset((noisy * 255).round().byte(), classes)
