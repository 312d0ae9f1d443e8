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


def test_pixels_far_away_are_not_a_linear_function_of_the_visible_ones(shapes):
    """Trap: a phase that the whole image shares, so that stripes continue for ever."""
    images, _ = shapes
    seen = images[:, :, :, 16:].mean(1).flatten(1)  # the right half, in grey
    hidden = images[:, :, 8:24, :4].mean(1).flatten(1)  # the left edge
    seen, hidden = seen - seen.mean(0), hidden - hidden.mean(0)
    fitted, held_out = slice(0, 1500), slice(1500, 2000)
    gram = seen[fitted].T @ seen[fitted]
    ridge = gram + 0.1 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weights = torch.linalg.solve(ridge, seen[fitted].T @ hidden[fitted])
    rest = (hidden[held_out] - seen[held_out] @ weights).pow(2).sum()
    assert 1 - rest / hidden[held_out].pow(2).sum() < 0.1
