"""Labelled images from the arrays of an `.npz` file."""

import zipfile
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import TensorDataset

from jepakit.data._image_files import read_image
from jepakit.data._split import Split


def load_arrays(path: str, image_size: int | None) -> Split:
    """Return the training and the test images of an `.npz` file."""
    return load_parts(path, lambda arrays, part: _load_part(path, arrays, part, image_size))


def load_parts(path: str, load_part: Callable[[Any, str], TensorDataset]) -> Split:
    """Return the part "train" and the part "test" of an `.npz` file; of one size, or raise."""
    # `np.load` would take text for a pickle, and return an `.npy` file as an array.
    if not zipfile.is_zipfile(path):
        rule = "must be a file of numpy.savez; it is truncated or of another kind"
        raise ValueError(f"source={path!r}: {rule}")
    with np.load(path) as arrays:
        parts = [load_part(arrays, part) for part in ("train", "test")]
    train, test = (tuple(part.tensors[0].shape[1:]) for part in parts)
    if train != test:
        what = "images must have one size [c, h, w]"
        if len(train) == 4:
            what = "clips must have one size [c, t, h, w]"
        hint = "; pass image_size" if train[:-2] == test[:-2] else ""
        rule = f"train and test {what}, got {train} and {test}{hint}"
        raise ValueError(f"source={path!r}: {rule}")
    return Split(*parts)


def to_dataset(images: Any, labels: Any, image_size: int | None) -> TensorDataset:
    """A dataset of uint8 images `[n h w]`, `[n h w c]` or `[n c h w]`."""
    tensor = torch.from_numpy(np.asarray(images))
    if tensor.dim() == 3:
        tensor = tensor[:, None]
    elif _channel_axis(tuple(tensor.shape)) == 3:
        tensor = tensor.permute(0, 3, 1, 2)
    if image_size is not None:
        tensor = resized(tensor, image_size)
    return TensorDataset(tensor, torch.from_numpy(np.asarray(labels).astype(np.int64)))


def resized(images: UInt8[Tensor, "n c h w"], side: int) -> UInt8[Tensor, "n c side side"]:
    """Images of `side` x `side` pixels."""
    if images.shape[-2:] == (side, side):
        return images
    # In chunks: as floats all images at once would take four times the memory of the set.
    chunks = [F.interpolate(c.float(), (side, side), mode="area") for c in torch.split(images, 512)]
    return torch.cat(chunks).round().to(torch.uint8)


def _channel_axis(shape: tuple[int, ...]) -> int | None:
    """Axis of the channels: the smallest of an image, last, or second if it is 1 or 3; or None."""
    _, second, third, last = shape
    if last < min(second, third):
        return 3
    return 1 if second in (1, 3) and second < min(third, last) else None


def _load_part(path: str, arrays: Any, part: str, image_size: int | None) -> TensorDataset:
    encoded = f"bytes_{part}" in arrays
    needed = [f"bytes_{part}", f"off_{part}"] if encoded else [f"x_{part}"]
    x, y = needed[0], f"y_{part}"
    *given, labels = (read_array(path, arrays, name) for name in (*needed, y))
    images = _decode(path, part, *given) if encoded else given[0]
    if problem := _images_problem(images):
        raise ValueError(f"source={path!r}: {x} {problem}, got {images.dtype} {images.shape}")
    check_labels(path, y, labels, len(images))
    return to_dataset(images, labels, image_size)


def read_array(path: str, arrays: Any, name: str) -> Any:
    """An array of an open `.npz` file."""
    if name not in arrays:
        held = sorted(arrays.files)
        raise ValueError(f"source={path!r}: must hold the array {name!r}, it holds {held}")
    try:
        return arrays[name]
    except Exception as error:  # of a broken file: BadZipFile, zlib.error, MemoryError, SyntaxError
        reason = " ".join(str(error).split()) or type(error).__name__
        text = f"the array {name!r} cannot be read, {reason}; write the file anew"
        raise ValueError(f"source={path!r}: {text}") from error


def _images_problem(images: Any) -> str | None:
    if images.dtype != np.uint8:
        hint = "; store floats from 0 to 1 as (255 * x).round().astype(numpy.uint8)"
        return f"must be uint8{hint if images.dtype.kind == 'f' else ''}"
    if images.ndim not in (3, 4):
        return "must be of shape [n, h, w], [n, h, w, c] or [n, c, h, w]"
    if images.size == 0:
        return "must not be empty"
    if images.ndim == 4 and _channel_axis(images.shape) is None:
        return (
            "must have the channels in the last axis, or 1 or 3 of them in the second, fewer than "
            "rows and columns"
        )
    return None


def check_labels(path: str, name: str, labels: Any, count: int) -> None:
    """Raise unless there is one integer for each of `count` images or clips."""
    if problem := _labels_problem(labels, count):
        raise ValueError(f"source={path!r}: {name} {problem}, got {labels.dtype} {labels.shape}")


def _labels_problem(labels: Any, count: int) -> str | None:
    if labels.ndim == 2 and labels.shape[1] > 1:
        return "must be one integer for each image; store one-hot labels as y.argmax(1)"
    if labels.dtype.kind not in "iu":
        return "must be integers"
    if labels.shape != (count,):
        return f"must be one integer for each image, of shape {(count,)}"
    return None


def _decode(path: str, part: str, encoded: Any, offsets: Any) -> Any:
    """Images `[n h w 3]` from their files, concatenated as bytes."""
    where = f"source={path!r}: "
    if encoded.dtype != np.uint8 or encoded.ndim != 1:
        got = f"got {encoded.dtype} {encoded.shape}"
        raise ValueError(f"{where}bytes_{part} must be uint8 of one axis, {got}")
    ascending = offsets.dtype.kind in "iu" and offsets.ndim == 1 and len(offsets) > 1
    ascending = ascending and offsets[0] >= 0 and bool((offsets[1:] >= offsets[:-1]).all())
    if not ascending or offsets[-1] > len(encoded):
        rule = (
            f"must be ascending integers from 0 to the {len(encoded)} bytes, one more than images"
        )
        raise ValueError(f"{where}off_{part} {rule}, got {offsets.dtype} {offsets.shape}")
    images: list[Tensor] = []
    for index, (start, end) in enumerate(pairwise(offsets.tolist())):
        name = f"{where}entry {index} of bytes_{part}"
        image = read_image(encoded[start:end].tobytes(), name)
        if images and image.shape != images[0].shape:
            sizes = f"{tuple(image.shape[1:])}, the first {tuple(images[0].shape[1:])}"
            raise ValueError(f"{name}: must have the size of the others, has {sizes}")
        images.append(image)
    return torch.stack(images).permute(0, 2, 3, 1).numpy()
