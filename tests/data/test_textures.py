"""`textured_shapes`: reproducible, and one part of an image says nothing global about another."""

import pytest
import torch
from torch import Tensor

from jepakit.data import textured_shapes


@pytest.fixture(scope="module")
def shapes() -> tuple[Tensor, Tensor]:
    """2,000 images as doubles, and their labels."""
    images, labels = textured_shapes(2000, 1)[0].tensors
    return images.double() / 255, labels


def test_always_the_same():
    once, again = (textured_shapes(50, 50) for _ in range(2))
    for first, second in zip(once, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first.tensors, second.tensors, strict=True))


def test_no_image_is_in_both_sets():
    train, test = (each.tensors[0].flatten(1) for each in textured_shapes(300, 300))
    joined = torch.cat([train, test])
    assert len(joined.unique(dim=0)) == 600


def test_the_test_images_do_not_depend_on_the_number_of_training_images():
    assert torch.equal(textured_shapes(1500, 1)[1].tensors[0], textured_shapes(1, 1)[1].tensors[0])


def test_a_single_pixel_is_not_informative(shapes):
    """Trap: a demo task that raw pixels solve. The classes have the same mean image."""
    images, labels = shapes
    assert labels.bincount(minlength=10).min() > 150
    means = torch.stack([images[labels == label].mean(0) for label in range(10)])
    # What chance leaves: 200 images a class, each pixel with a std of 0.16.
    assert means.std(0).mean() < 0.03
    assert images.std(0).mean() > 0.15


def test_halves_share_no_brightness_contrast_or_colour(shapes):
    """Trap: a contrast and a brightness for the whole image, which the context gives away."""
    left, right = shapes[0].chunk(2, dim=3)
    for statistic in (lambda half: half.mean((2, 3)), lambda half: half.std((2, 3))):
        a, b = (statistic(half) - statistic(half).mean(0) for half in (left, right))
        for channels in range(3):
            correlation = torch.corrcoef(torch.stack([a[:, channels], b[:, channels]]))[0, 1]
            assert abs(correlation) < 0.35


def test_stripes_cannot_be_continued_as_a_plane_wave(shapes):
    """Trap: a phase that the whole image shares, so that stripes continue for ever."""
    images, labels = shapes
    grey = images[labels == 0].mean(1)  # vertical stripes
    period, angle = torch.meshgrid(
        torch.linspace(5.6, 8.4, 29), torch.linspace(-0.4, 0.4, 17), indexing="ij"
    )
    turned = torch.polar(2 * torch.pi / period, angle).flatten()[:, None, None]
    y, x = torch.meshgrid(torch.arange(48), torch.arange(48), indexing="ij")
    waves = torch.polar(torch.ones(()), turned.real * x + turned.imag * y).to(torch.complex128)
    seen, hidden = (slice(None), slice(20, None)), (slice(None), slice(0, 12))
    # The wave that fits the visible part best, against what is hidden.
    centred = grey[:, *seen] - grey[:, *seen].mean((1, 2), keepdim=True)
    fits = torch.einsum("nhw,khw->nk", centred.to(waves.dtype), waves[:, *seen].conj())
    best = fits.abs().argmax(1)
    continued = (fits.gather(1, best[:, None])[..., None] * waves[best]).real[:, *hidden]
    pairs = zip(continued.flatten(1), grey[:, *hidden].flatten(1), strict=True)
    correlation = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs])
    assert correlation.mean() < 0.1  # 0.28 where nothing is bent
