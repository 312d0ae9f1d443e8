"""Arrays of an `.npz` file as people have them: recognised, or refused by name."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from jepakit.data import load_images


def arrays(shape: tuple[int, ...] = (6, 8, 4, 3)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    parts = {}
    for part in ("train", "test"):
        parts[f"x_{part}"] = rng.integers(0, 256, shape, dtype=np.uint8)
        parts[f"y_{part}"] = np.arange(len(parts[f"x_{part}"])) % 3
    return parts


def load(tmp_path, changes: dict, image_size: int | None = None):
    np.savez(tmp_path / "a.npz", **arrays() | changes)
    return load_images(tmp_path / "a.npz", image_size=image_size)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("image_size", [None, 4])
def test_channels_first_are_recognised(channels, image_size, tmp_path):
    """Trap: 32 channels of 3 x 32 pixels."""
    last, first = arrays((5, 8, 12, channels)), arrays((5, 8, 12, channels))
    for part in ("train", "test"):
        first[f"x_{part}"] = last[f"x_{part}"].transpose(0, 3, 1, 2)
    expected = load(tmp_path, last, image_size)
    for ours, theirs in zip(load(tmp_path, first, image_size), expected, strict=True):
        assert ours[0][0].shape == (channels, 8, 12)[:1] + ((4, 4) if image_size else (8, 12))
        assert all((a[0] == b[0]).all() for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("shape", [(2, 13, 64, 64), (2, 3, 32, 3), (2, 8, 8, 8), (2, 3, 3, 32)])
def test_channels_that_could_be_either_are_refused(shape, tmp_path):
    with pytest.raises(ValueError, match=r"x_train must have the channels in the last axis, or 1"):
        load(tmp_path, arrays(shape))


def test_many_channels_come_last(tmp_path):
    assert load(tmp_path, arrays((2, 64, 60, 13)))[0][0][0].shape == (13, 64, 60)


FLOATS = np.zeros((6, 8, 4, 3), np.float32)
BYTES = FLOATS.astype(np.uint8)
BAD = {
    "floats": ({"x_train": FLOATS}, r"x_train must be uint8; store floats from 0 to 1 as \(255 \*"),
    "16 bits": ({"x_test": FLOATS.astype(np.uint16)}, "x_test must be uint8, got uint16"),
    "objects": ({"x_train": np.array([1, "a"], object)}, "'x_train' cannot be read, .*pickle"),
    "vectors": ({"x_train": np.zeros((6, 32), np.uint8)}, r"x_train must be of shape \[n, h, w\],"),
    "no image": ({"x_train": np.zeros((0, 8, 4, 3), np.uint8)}, "x_train must not be empty"),
    "no pixel": ({"x_test": np.zeros((6, 0, 4), np.uint8)}, "x_test must not be empty"),
    "NaN": ({"y_train": np.full(6, np.nan)}, "y_train must be integers, got float64"),
    "float labels": ({"y_test": np.arange(6.0)}, "y_test must be integers, got float64"),
    "names": ({"y_test": np.array(list("abcabc"))}, "y_test must be integers, got <U1"),
    "one-hot": ({"y_train": np.eye(6, dtype=int)}, r"y_train .* one-hot labels as y\.argmax\(1\)"),
    "one label": ({"y_train": np.array(3)}, r"y_train must be one integer .*of shape \(6,\), got"),
    "a label short": ({"y_train": np.arange(5)}, r"of shape \(6,\), got int64 \(5,\)"),
    "a column": ({"y_train": np.arange(6)[:, None]}, r"of shape \(6,\), got int64 \(6, 1\)"),
    "other sizes": ({"x_test": BYTES[:, :6]}, r"\(3, 8, 4\) and \(3, 6, 4\); pa"),
    "other channels": ({"x_test": BYTES[..., :1]}, r"\(3, 8, 4\) and \(1, 8, 4\)$"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays_are_refused(case, tmp_path):
    """Traps: division by 255 twice, NaN as a class of -2^63, one-hot vectors as labels."""
    changes, text = BAD[case]
    with pytest.raises(ValueError, match=rf"a\.npz'.*{text}"):
        load(tmp_path, changes)


def test_other_sizes_are_resized_to_one(tmp_path):
    train, test = load(tmp_path, {"x_test": np.zeros((6, 6, 4, 3), np.uint8)}, image_size=4)
    assert train[0][0].shape == test[0][0].shape == (3, 4, 4)


def encoded(sizes=((8, 4), (8, 4), (8, 4))) -> dict[str, np.ndarray]:
    files = []
    for size in sizes:
        file = io.BytesIO()
        Image.new("RGB", size, (1, 2, 3)).save(file, "png")
        files.append(file.getvalue())
    held = {}
    for part in ("train", "test"):
        held[f"bytes_{part}"] = np.frombuffer(b"".join(files), np.uint8).copy()
        held[f"off_{part}"] = np.cumsum([0, *map(len, files)])
        held[f"y_{part}"] = np.arange(len(files))
    return held


def change(array: np.ndarray, index: int, value: int) -> np.ndarray:
    array = array.copy()
    array[index] = value
    return array


@pytest.mark.parametrize("case", ["bytes", "shifted", "beyond", "descending", "floats", "sizes"])
def test_encoded_entries_are_named(case, tmp_path):
    held = encoded(((8, 4), (8, 4), (4, 8))) if case == "sizes" else encoded()
    offsets = held["off_train"]
    text = r"off_train must be ascending integers from 0 to the \d+ bytes"
    if case == "bytes":
        held["bytes_train"][offsets[1] : offsets[2]] = 7
        text = "entry 1 of bytes_train: cannot be read, cannot identify image"
    elif case == "shifted":
        held["off_train"], text = (
            change(offsets, 1, offsets[1] - 40),
            "entry 0 of bytes_train: canno",
        )
    elif case == "sizes":
        text = (
            r"entry 2 of bytes_train: must have the size of the others, has \(8, 4\), the first \("
        )
    else:
        held["off_train"] = {
            "beyond": change(offsets, 3, 10**9), "descending": change(offsets, 1, 10**6),
            "floats": offsets.astype(float),
        }[case]  # fmt: skip
    np.savez(tmp_path / "a.npz", **held)
    with pytest.raises(ValueError, match=rf"a\.npz'.*{text}"):
        load_images(tmp_path / "a.npz")


@pytest.mark.parametrize("case", ["empty", "text", "npy", "pickle", "truncated"])
def test_files_of_another_kind_are_named(case, tmp_path):
    """Trap: `AttributeError: __enter__`, `BadZipFile` without a name."""
    path = tmp_path / "a.npz"
    np.savez(path, **arrays())
    whole = path.read_bytes()
    if case == "npy":
        np.save(tmp_path / "a.npy", np.zeros(3))
        whole = (tmp_path / "a.npy").read_bytes()
    contents = {"empty": b"", "text": b"<html>", "pickle": b"\x80\x04N.", "npy": whole}
    path.write_bytes(contents.get(case, whole[: len(whole) // 2]))
    with pytest.raises(
        ValueError, match=r"a\.npz': must be a file of numpy\.savez; it is truncated"
    ):
        load_images(path)


def test_a_flipped_bit_is_noticed(tmp_path):
    np.savez(tmp_path / "a.npz", **arrays())
    whole = bytearray((tmp_path / "a.npz").read_bytes())
    whole[300] ^= 4  # of the first array
    (tmp_path / "a.npz").write_bytes(whole)
    with pytest.raises(ValueError, match=r"a\.npz': the array 'x_train' cannot be read, .*anew"):
        load_images(tmp_path / "a.npz")


@pytest.mark.parametrize("count", [10**11, 10**14, 10**30])
def test_a_header_of_absurd_size_is_refused(count, tmp_path):
    """Trap: memory for what a header of a few bytes promises."""
    path = tmp_path / "a.npz"
    header = (
        f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({count}, 8, 4), }}".ljust(117) + "\n"
    )
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"12345"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x_train.npy", content)
        archive.writestr("y_train.npy", content)
    with pytest.raises(ValueError, match=r"a\.npz': the array 'x_train' cannot be read"):
        load_images(path)
