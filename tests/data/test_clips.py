"""`load_clips`: generated clips, arrays and folders of videos, and errors where something lacks."""

import builtins
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jepakit.data import clips, load_clips, moving_textures


def arrays(channels: int | None = 3, frames: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (6, frames, 8, 4) if channels is None else (6, frames, 8, 4, channels)
    parts = {}
    for part in ("train", "test"):
        parts[f"x_{part}"] = rng.integers(0, 256, shape, dtype=np.uint8)
        parts[f"y_{part}"] = np.arange(6) % 3
    return parts


def test_motions_are_the_generated_set(monkeypatch):
    few = moving_textures(3, 2)
    monkeypatch.setattr(clips, "moving_textures", lambda: few)
    assert load_clips("motions") is few


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_arrays_come_back(channels, tmp_path):
    given = arrays(channels)
    np.savez(tmp_path / "a.npz", **given)
    for part, dataset in zip(("train", "test"), load_clips(tmp_path / "a.npz"), strict=True):
        assert len(dataset) == 6
        for index in range(6):
            clip, label = dataset[index]
            assert clip.dtype == torch.uint8 and label == index % 3
            expected = given[f"x_{part}"][index].reshape(5, 8, 4, channels or 1)
            assert np.array_equal(clip.numpy(), expected.transpose(3, 0, 1, 2))


def test_arrays_are_cut_and_resized(tmp_path):
    """Trap: frames and channels exchanged where both are folded into one axis."""
    given = arrays()
    given["x_train"][..., 0] = 50 * np.arange(5)[:, None, None]  # red shows the time
    np.savez(tmp_path / "a.npz", **given)
    train, _ = load_clips(tmp_path / "a.npz", num_frames=3, image_size=2)
    clip = train[0][0]
    assert clip.shape == (3, 3, 2, 2)
    assert (clip[0] == torch.tensor([0, 50, 100])[:, None, None]).all()
    expected = given["x_train"][0, :3].reshape(3, 2, 4, 2, 2, 3).mean((2, 4)).transpose(3, 0, 1, 2)
    assert np.abs(clip.numpy() - expected).max() <= 0.5


BAD_ARRAYS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "floats": ({"x_train": np.zeros((6, 5, 8, 4))}, {}, "x_train must be uint8; store floats"),
    "channels first": (
        {"x_train": np.zeros((6, 3, 5, 8, 4), np.uint8)},
        {},
        r"must be of shape \[n, t, h, w\], or .* with 1 or 3 channels",
    ),
    "images": ({"x_test": np.zeros((6, 8, 4), np.uint8)}, {}, "x_test must be of shape"),
    "empty": ({"x_test": np.zeros((0, 5, 8, 4), np.uint8)}, {}, "must not be empty"),
    "short": ({}, {"num_frames": 6}, "must have at least num_frames=6 frames"),
    "labels": ({"y_test": np.zeros(5, int)}, {}, "y_test must be one integer for each"),
    "size": (
        {"x_test": np.zeros((6, 5, 8, 8, 3), np.uint8)},
        {},
        r"clips must have one size \[c, t, h, w\].*pass image_size",
    ),
    "step": ({}, {"frame_step": 2}, "frame_step=2: is for videos, must be None"),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_bad_arrays_are_named(kind, tmp_path):
    changed, options, text = BAD_ARRAYS[kind]
    np.savez(tmp_path / "a.npz", **{**arrays(), **changed})
    with pytest.raises(ValueError, match=text):
        load_clips(tmp_path / "a.npz", **options)


def test_a_missing_array_is_named(tmp_path):
    given = arrays()
    del given["y_test"]
    np.savez(tmp_path / "a.npz", **given)
    with pytest.raises(ValueError, match="must hold the array 'y_test'"):
        load_clips(tmp_path / "a.npz")


@pytest.mark.no_hook
def test_bad_sources_are_named(tmp_path):
    with pytest.raises(TypeError, match="source=3: must be a str or a path"):
        load_clips(3)
    with pytest.raises(ValueError, match=r"must be 'motions', an \.npz file or a folder"):
        load_clips("nowhere")
    with pytest.raises(ValueError, match="there is no such file"):
        load_clips("nowhere.npz")
    with pytest.raises(ValueError, match="image_size=64: motions are 8 x 32 x 32, must be None"):
        load_clips("motions", image_size=64)
    with pytest.raises(ValueError, match="num_frames=None: videos of a folder differ"):
        load_clips(tmp_path, image_size=8)
    with pytest.raises(ValueError, match="image_size=None: videos of a folder differ"):
        load_clips(tmp_path, num_frames=8)
    with pytest.raises(ValueError, match="num_frames=0: must be at least 1"):
        load_clips("motions", num_frames=0)


def write_video(path: Path, brightness: list[int]) -> None:
    """A video of the stand-in for PyAV: a line of brightnesses, one for each frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(" ".join(map(str, brightness)))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module in PyAV's place, with as much of it as is called."""

    class Container:
        def __init__(self, path: str) -> None:
            self.values = [int(word) for word in Path(path).read_text().split()]

        def __enter__(self) -> "Container":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def decode(self, video: int) -> Any:
            for value in self.values:
                # Twice as wide as high, and white outside of the central square.
                pixels = np.full((8, 16, 3), 255, np.uint8)
                pixels[:, 4:12] = value
                yield SimpleNamespace(to_image=lambda pixels=pixels: Image.fromarray(pixels))

    module = ModuleType("av")
    module.open = Container  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "av", module)


@pytest.mark.usefixtures("stand_in")
def test_videos_give_their_middle_frames(tmp_path):
    for number in range(5):
        for name in ("a", "b"):
            frames = [10 * number + frame for frame in range(9)]
            write_video(tmp_path / "train" / name / f"{number}.mp4", frames)
    write_video(tmp_path / "test" / "a" / "0.AVI", list(range(5)))
    write_video(tmp_path / "test" / "b" / "notes.txt", [])
    train, test = load_clips(tmp_path, num_frames=3, frame_step=2, image_size=8)
    assert len(train) == 10 and len(test) == 1
    clip, label = test[0]
    assert clip.shape == (3, 3, 8, 8) and clip.dtype == torch.uint8 and label == 0
    assert (clip == torch.tensor([0, 2, 4])[:, None, None]).all()
    firsts = {(int(clip[0, 0, 0, 0]), label) for clip, label in train}
    assert firsts == {(10 * number + 2, label) for number in range(5) for label in (0, 1)}


@pytest.mark.usefixtures("stand_in")
def test_videos_without_classes_have_no_labels(tmp_path):
    for number in range(5):
        write_video(tmp_path / f"{number}.webm", [number] * 4)
    train, test = load_clips(tmp_path, num_frames=2, image_size=4)
    assert len(train) == 4 and len(test) == 1 and len(train[0]) == 1


@pytest.mark.usefixtures("stand_in")
def test_short_and_broken_videos_are_named(tmp_path):
    write_video(tmp_path / "short.mp4", [1, 2, 3, 4])
    (tmp_path / "text.mp4").write_text("no numbers")
    train, test = load_clips(tmp_path, num_frames=3, frame_step=2, image_size=4)
    texts = []
    for dataset in (train, test):
        with pytest.raises(ValueError, match="video file") as raised:
            dataset[0]
        texts.append(str(raised.value))
    short, broken = sorted(texts)
    assert "short.mp4': must have 5 frames or more, has 4" in short
    assert "text.mp4': cannot be read, invalid literal" in broken


def test_without_pyav_the_error_says_what_to_install(tmp_path, monkeypatch):
    """Trap: the error comes at the first item, in a worker."""
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "av":
            raise ImportError(name)
        return real(name, *rest)

    write_video(tmp_path / "a.mp4", [1])
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install av; or store clips in an \.npz file"):
        load_clips(tmp_path, num_frames=2, image_size=4)


def test_pyav_itself(tmp_path):
    """A file that PyAV writes is read as it was."""
    av = pytest.importorskip("av")
    for name in "ab":
        with av.open(str(tmp_path / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
            for brightness in range(0, 200, 20):
                pixels = np.full((32, 64, 3), brightness, np.uint8)
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    train, _ = load_clips(tmp_path, num_frames=4, frame_step=2, image_size=16)
    clip = train[0][0].float()
    assert clip.shape == (3, 4, 16, 16)
    assert (clip - torch.tensor([20.0, 60, 100, 140]).view(1, 4, 1, 1)).abs().max() < 6
