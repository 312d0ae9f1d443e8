"""`moving_textures`: reproducible, and only a sequence of frames shows the class."""

import pytest
import torch
from torch import Tensor

from jepakit.data import motions, moving_textures
from jepakit.evaluation import Features, knn_accuracy, linear_probe


@pytest.fixture(scope="module")
def clips() -> tuple[Tensor, Tensor]:
    """3,000 clips `[n t h w]` as floats from -0.5 to 0.5, and their labels."""
    clips, labels = moving_textures(3000, 1)[0].tensors
    return clips[:, 0] / 255 - 0.5, labels


def split(x: Tensor, labels: Tensor) -> tuple[Features, Features]:
    return Features(x[:2000], labels[:2000]), Features(x[2000:], labels[2000:])


def test_always_the_same():
    once, again = (moving_textures(30, 30) for _ in range(2))
    for first, second in zip(once, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first.tensors, second.tensors, strict=True))


def test_no_clip_is_in_both_sets():
    joined = torch.cat([each.tensors[0].flatten(1) for each in moving_textures(200, 200)])
    assert len(joined.unique(dim=0)) == 400


def test_the_test_clips_do_not_depend_on_the_number_of_training_clips():
    assert torch.equal(moving_textures(700, 1)[1].tensors[0], moving_textures(1, 1)[1].tensors[0])


@pytest.mark.parametrize("frame", [0, 4, 7])
def test_one_frame_is_at_chance(frame, clips):
    """Trap: a place, a size or a blur that gives the motion away."""
    x, labels = clips
    assert labels.bincount(minlength=10).min() > 250
    pixels = split(x[:, frame].flatten(1), labels)
    # What motion could change: the spectrum over all orientations, and the place of the shape.
    spectrum = split(torch.fft.rfft2(x[:, frame]).abs().add(1).log().flatten(1), labels)
    # 1,000 test clips: the standard error is 0.9 points.
    assert knn_accuracy(*pixels) < 0.135
    assert linear_probe(*pixels, C=1e-3) < 0.135
    assert linear_probe(*spectrum, C=1e-3) < 0.135


def test_the_raw_clip_says_little(clips):
    """Trap: a demo task that pixels solve."""
    x, labels = clips
    assert knn_accuracy(*split(x.flatten(1), labels)) < 0.4
    assert linear_probe(*split(x[:, ::2, ::2, ::2].flatten(1), labels), C=1e-3) < 0.15


def test_the_motions_are_what_their_names_say(clips):
    """Right, down, left and up are the shift that correlates two frames best."""
    x, labels = clips
    centred = x - x.mean(1, keepdim=True)  # what stays is gone
    spectra = torch.fft.fft2(centred)
    products = (spectra[:, 1:] * spectra[:, :-1].conj()).sum(1)
    correlation = torch.fft.ifft2(products).real
    best = correlation.flatten(1).argmax(1)
    dy, dx = ((axis + 16) % 32 - 16 for axis in (best // 32, best % 32))
    shifts = [(1, 0), (0, 1), (-1, 0), (0, -1)]
    for label, (right, down) in enumerate(shifts):
        members = labels == label
        along = (dx * right + dy * down)[members]
        across = (dx * down + dy * right)[members].abs()
        assert (along > across).float().mean() > 0.9


def test_every_motion_has_a_path_of_its_own():
    """Trap: two classes with the same motion, such as a circle that has become a line."""
    generator = torch.Generator().manual_seed(0)
    count = 300
    labels = torch.arange(len(motions._MOTIONS)).repeat_interleave(count)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(len(labels), *shape, generator=generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(len(labels), *shape, generator=generator)

    moved, turned = motions._motion(labels, uniform, normal)
    found = zip(motions._MOTIONS, moved.split(count), turned.split(count), strict=True)
    for name, paths, angles in found:
        turns = {"clockwise": 1, "anticlockwise": -1}.get(name, 0)
        assert (angles.diff().sign() == turns).all(), name
        x, y = paths.unbind(1)
        if turns:
            assert not paths.any(), name
            continue
        axis = {"right": x, "left": -x, "down": y, "up": -y}.get(name)
        if axis is not None:
            assert (axis.diff() > 0).all(), name
            continue
        # Of two directions, what the smaller one of the variances is of the larger one.
        centred = paths - paths.mean(dim=2, keepdim=True)
        smaller, larger = torch.linalg.eigvalsh(centred @ centred.mT).unbind(1)
        roundness = (smaller / larger).median()
        if name in ("to and fro", "up and down"):
            assert roundness < 1e-3, name
            along, across = (x, y) if name == "to and fro" else (y, x)
            assert (along.std(1) > across.std(1)).all(), name
        else:
            assert roundness > 0.2, name
        steps = paths.diff(dim=2).norm(dim=1)
        smooth = (steps.std(1) / steps.mean(1)).median()
        assert (smooth < 0.05) == (name == "circle"), name
