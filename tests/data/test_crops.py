"""`random_crops`: each image has its own crop, which lies inside it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jepakit.data import random_crops


def ramps(count: int, height: int, width: int) -> torch.Tensor:
    """Channel 0 is the row, channel 1 the column, in image coordinates from -1 to 1."""
    rows = (2 * torch.arange(height) + 1) / height - 1
    columns = (2 * torch.arange(width) + 1) / width - 1
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij")).expand(count, 2, -1, -1)


@given(
    height=st.integers(8, 20),
    width=st.integers(8, 20),
    low=st.floats(0.3, 0.9),
    seed=st.integers(0, 999),
)
def test_a_ramp_shows_where_the_crop_was(height, width, low, seed):
    """A linear ramp stays linear; its slope is the side, and its ends lie within the image."""
    generator = torch.Generator().manual_seed(seed)
    crops = random_crops(ramps(16, height, width), (low, 1.0), generator=generator)
    for axis, size in ((2, height), (3, width)):
        inner = crops[:, axis - 2].narrow(axis - 1, 1, size - 2)  # edges meet the border's padding
        steps = inner.diff(dim=axis - 1)
        side = steps.mean(dim=(1, 2)) * size / 2
        torch.testing.assert_close(steps.amax((1, 2)), steps.amin((1, 2)), atol=1e-4, rtol=0)
        assert (side**2 >= low - 1e-3).all() and (side <= 1 + 1e-3).all()
        centre = inner.mean(dim=(1, 2))
        assert (centre.abs() + side <= 1 + 1e-3).all()


def test_every_image_is_drawn_on_its_own_and_half_are_mirrored():
    """Trap: one crop for a whole batch."""
    crops = random_crops(ramps(400, 8, 8), (0.2, 1.0), flip=True)
    assert len(crops[:, 0, 4, 4].unique()) > 350
    mirrored = (crops[:, 1].diff(dim=2).mean((1, 2)) < 0).float().mean()
    assert 0.4 < mirrored < 0.6
    assert (crops[:, 0].diff(dim=1).mean((1, 2)) > 0).all()  # never upside down


def test_every_image_has_its_own_scale():
    """Trap: one scale for the batch, which crops at different places do not show."""
    crops = random_crops(ramps(64, 16, 16), (0.1, 1.0))
    sides = crops[:, 1, 8, 2:-2].diff(dim=1).mean(dim=1) * 16 / 2
    assert len((sides * 1000).round().unique()) > 50
    area = sides.square()
    assert area.min() < 0.25 and area.max() > 0.8 and 0.4 < area.mean() < 0.7


def test_the_whole_image_is_left_alone():
    images = torch.rand(3, 1, 5, 7)
    assert random_crops(images, (1.0, 1.0)) is images


def test_autocast_and_half_precision_move_no_crop():
    """Trap: coordinates computed in bfloat16, off by up to a pixel in 256."""
    images = ramps(16, 64, 64)
    once = random_crops(images, (0.3, 1.0), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        again = random_crops(images, (0.3, 1.0), generator=torch.Generator().manual_seed(0))
    assert torch.equal(again, once)
    rounded = images.bfloat16()
    expected = random_crops(
        rounded.float(), (0.3, 1.0), generator=torch.Generator().manual_seed(0)
    ).bfloat16()
    half = random_crops(rounded, (0.3, 1.0), generator=torch.Generator().manual_seed(0))
    assert torch.equal(half, expected)


def test_a_generator_decides():
    images = torch.rand(3, 1, 5, 7)
    once, again = (
        random_crops(images, (0.2, 0.9), generator=torch.Generator().manual_seed(4))
        for _ in range(2)
    )
    assert torch.equal(once, again)


@pytest.mark.parametrize("scale", [[0.2, 0.9], np.array([0.2, 0.9])])
def test_scales_of_any_kind(scale):
    images, generator = torch.rand(3, 1, 5, 7), torch.Generator()
    expected = random_crops(images, (0.2, 0.9), generator=generator.manual_seed(4))
    crops = random_crops(images, scale, generator=generator.manual_seed(4))
    assert torch.equal(crops, expected)


@pytest.mark.parametrize("scale", [(0.9, 0.5), (0.0, 1.0), (0.5, 1.5)])
def test_a_bad_scale_raises(scale):
    with pytest.raises(ValueError, match="scale"):
        random_crops(torch.rand(1, 1, 4, 4), scale)


def test_frames_of_a_clip_get_one_crop():
    """Trap: frames in the batch, each cropped and mirrored on its own: nothing to predict holds."""
    clip = ramps(6, 8, 8).unsqueeze(1).expand(6, 4, 2, 8, 8)  # 4 equal frames
    crops = random_crops(clip.flatten(1, 2), (0.2, 0.8), flip=True).unflatten(1, (4, 2))
    assert torch.equal(crops, crops[:, :1].expand_as(crops))
    assert not torch.equal(crops[0], crops[1])


@pytest.mark.no_hook
def test_a_clip_as_it_is_raises():
    with pytest.raises(
        ValueError, match=r"images \(2, 4, 3, 8, 8\): must have the shape \[b, c, h, w\]"
    ):
        random_crops(torch.zeros(2, 4, 3, 8, 8), (0.5, 1.0))


@pytest.mark.no_hook
def test_flip_is_a_bool():
    with pytest.raises(TypeError, match="flip='no': must be a bool"):
        random_crops(torch.zeros(1, 1, 4, 4), (0.5, 1.0), flip="no")
