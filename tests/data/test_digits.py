"""`digit_canvases`: reproducible, and no single pixel is informative."""

import pytest
import torch

from jepakit.data import digit_canvases

pytest.importorskip("sklearn")


def test_always_the_same():
    once, again = (digit_canvases(50, 20) for _ in range(2))
    for first, second in zip(once, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first.tensors, second.tensors, strict=True))
    assert not torch.equal(once[0].tensors[0][:20], once[1].tensors[0])


def test_a_single_pixel_is_not_informative():
    """Trap: a demo task that raw pixels solve. Rolled canvases have one mean image per class."""
    images, labels = digit_canvases(3000, 1)[0].tensors
    images = images.double() / 255
    spread = torch.stack([images[labels == label].mean(0) for label in range(10)]).std(0).mean()
    # What remains are the classes' amounts of ink and chance, far below a digit's contrast.
    assert spread < 0.03
    assert images.std() > 0.2
    assert set(labels.tolist()) == set(range(10))
