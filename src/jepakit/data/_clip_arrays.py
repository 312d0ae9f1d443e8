"""Labelled clips from the arrays of an `.npz` file."""

from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch.utils.data import TensorDataset

from jepakit.data._image_arrays import check_labels, load_parts, read_array, resized
from jepakit.data._split import Split


def load_clip_arrays(path: str, num_frames: int | None, image_size: int | None) -> Split:
    """Return the training and the test clips of an `.npz` file."""

    def load_part(arrays: Any, part: str) -> TensorDataset:
        clips, labels = (read_array(path, arrays, f"{name}_{part}") for name in "xy")
        if problem := _problem(clips, num_frames):
            got = f"got {clips.dtype} {clips.shape}"
            raise ValueError(f"source={path!r}: x_{part} {problem}, {got}")
        check_labels(path, f"y_{part}", labels, len(clips))
        tensor = torch.from_numpy(clips[:, :num_frames])
        tensor = (
            tensor[:, None] if tensor.dim() == 4 else rearrange(tensor, "n t h w c -> n c t h w")
        )
        if image_size is not None:
            frames = resized(rearrange(tensor, "n c t h w -> (n t) c h w"), image_size)
            tensor = rearrange(frames, "(n t) c h w -> n c t h w", n=len(tensor))
        return TensorDataset(tensor.contiguous(), torch.from_numpy(labels.astype(np.int64)))

    return load_parts(path, load_part)


def _problem(clips: Any, num_frames: int | None) -> str | None:
    if clips.dtype != np.uint8:
        hint = "; store floats from 0 to 1 as (255 * x).round().astype(numpy.uint8)"
        return f"must be uint8{hint if clips.dtype.kind == 'f' else ''}"
    if clips.ndim != 4 and (clips.ndim != 5 or clips.shape[-1] not in (1, 3)):
        return "must be of shape [n, t, h, w], or [n, t, h, w, c] with 1 or 3 channels"
    if clips.size == 0:
        return "must not be empty"
    if num_frames is not None and clips.shape[1] < num_frames:
        return f"must have at least num_frames={num_frames} frames"
    return None
