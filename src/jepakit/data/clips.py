"""`load_clips`: training and test clips of the generated set, an `.npz` file or a folder."""

import os
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from jepakit._checks import as_int, type_name
from jepakit.data._clip_arrays import load_clip_arrays
from jepakit.data._folders import load_folder
from jepakit.data._video_files import VIDEOS, VideoFiles, check_reader
from jepakit.data.motions import moving_textures

__all__ = ["load_clips"]


def load_clips(
    source: str | os.PathLike[str],
    *,
    num_frames: int | None = None,
    frame_step: int | None = None,
    image_size: int | None = None,
) -> tuple[Dataset[Any], Dataset[Any]]:
    """Load training and test clips from the generated set, an `.npz` file or a folder of videos.

    Both are datasets of `(clip [c t h w] in uint8, label)`; of a folder without classes, of
    `(clip,)`. A video is decoded when its item is read, which takes PyAV (`pip install av`).

    Args:
        source: One of:

            - `"motions"`: `moving_textures`.
            - An `.npz` file with `x_train, y_train, x_test, y_test`, clips as uint8 `[n t h w]` or,
              with 1 or 3 channels, `[n t h w c]`, shuffled already, labels as integers `[n]`.
            - A folder of videos, arranged as in `load_images`.

            A `Path` is always a file or a folder.
        num_frames: Frames of a clip: the first ones of a file's clips, or from the middle of a
            video. None keeps the length of a file's clips; videos need a number.
        frame_step: Of a video, take every frame_step-th frame. None is 1.
        image_size: Resize to a square of this many pixels. None keeps the size of a file's clips;
            videos need a number, and are cropped to a square first.

    Raises:
        ImportError: For a folder, if PyAV is not installed.
        ValueError: As in `load_images`, and if clips or videos are shorter than `num_frames`, or an
            argument is missing or cannot take effect.

    Example:
        >>> from jepakit.data import load_clips
        >>> train, test = load_clips("motions")
        >>> train[0][0].shape, len(test)
        (torch.Size([1, 8, 32, 32]), 2000)
    """
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"source={source!r}: must be a str or a path, got {type_name(source)}")
    given = {"num_frames": num_frames, "frame_step": frame_step, "image_size": image_size}
    for name, value in given.items():
        if value is not None:
            given[name] = as_int(name, value, minimum=1)
    num_frames, frame_step, image_size = given.values()
    if source == "motions":
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"{name}={value}: motions are 8 x 32 x 32, must be None")
        return moving_textures()
    path = Path(source)
    if path.suffix.lower() == ".npz" and not path.is_dir():
        if not path.is_file():
            raise ValueError(f"source={str(path)!r}: there is no such file")
        if frame_step is not None:
            raise ValueError(f"frame_step={frame_step}: is for videos, must be None")
        return load_clip_arrays(str(path), num_frames, image_size)
    if not path.is_dir():
        rule = "must be 'motions', an .npz file or a folder that exists"
        raise ValueError(f"source={str(path)!r}: {rule}")
    if num_frames is None or image_size is None:
        name = "num_frames" if num_frames is None else "image_size"
        raise ValueError(f"{name}=None: videos of a folder differ, must be a number")
    check_reader()
    read = partial(
        VideoFiles, num_frames=num_frames, frame_step=frame_step or 1, image_size=image_size
    )
    return load_folder(path, VIDEOS, read)
