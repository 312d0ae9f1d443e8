"""Video files as uint8 clips, and as a dataset."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from jepakit.data._folders import FileKind

VIDEOS = FileKind("videos", (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif", ".m4v", ".mpg"))


class VideoFiles(Dataset[tuple[Any, ...]]):
    """Clips from the middle of videos, cropped to a square: `(clip,)` or `(clip, label)`."""

    def __init__(
        self,
        paths: list[str],
        labels: list[int] | None,
        num_frames: int,
        frame_step: int,
        image_size: int,
    ) -> None:
        self.paths = paths
        self.labels = labels
        self.num_frames = num_frames
        self.frame_step = frame_step
        self.image_size = image_size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        clip = read_clip(self.paths[index], self.num_frames, self.frame_step, self.image_size)
        return (clip,) if self.labels is None else (clip, self.labels[index])


def check_reader() -> None:
    """Raise unless PyAV is installed."""
    try:
        import av  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "videos are read by PyAV: pip install av; or store clips in an .npz file"
        ) from error


def read_clip(
    path: str, num_frames: int, frame_step: int, image_size: int
) -> UInt8[Tensor, "3 t side side"]:
    """Every `frame_step`-th frame of a video, `num_frames` of them, from its middle.

    Raises:
        ValueError: If the file cannot be decoded, or is shorter.
    """
    try:
        # Decoded twice: the number of frames that a header gives is often wrong, and all frames of
        # a video at once may not fit into memory.
        length = sum(1 for _ in _frames(path))
        first = (length - 1 - (num_frames - 1) * frame_step) // 2
        wanted = range(first, first + num_frames * frame_step, frame_step)
        frames = [
            _square(frame, image_size)
            for number, frame in enumerate(_frames(path))
            if first >= 0 and number in wanted
        ]
    except Exception as error:  # decoders raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"video file {path!r}: cannot be read, {reason}; replace or remove it"
        ) from error
    if len(frames) < num_frames:
        rule = f"must have {(num_frames - 1) * frame_step + 1} frames or more, has {length}"
        raise ValueError(
            f"video file {path!r}: {rule}; for {num_frames} frames in steps of {frame_step}"
        )
    return torch.stack(frames, dim=1)


def _frames(path: str) -> Iterator[Any]:
    import av

    with av.open(path) as container:
        yield from container.decode(video=0)


def _square(frame: Any, side: int) -> UInt8[Tensor, "3 side side"]:
    """Red, green and blue of a frame, cropped to a square from its centre and resized."""
    import numpy as np
    from PIL import Image, ImageOps

    image = ImageOps.fit(frame.to_image(), (side, side), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
