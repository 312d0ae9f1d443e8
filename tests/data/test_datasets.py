"""`load_images`: files, folders and downloaded sets, and errors where something is missing."""

import hashlib
import io
import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from jepakit.data import PixelStatistics, load_images
from jepakit.evaluation import evaluate


def arrays(channels: int | None = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (6, 8, 4) if channels is None else (6, 8, 4, channels)
    parts = {}
    for part in ("train", "test"):
        parts[f"x_{part}"] = rng.integers(0, 256, shape, dtype=np.uint8)
        parts[f"y_{part}"] = np.arange(6) % 3
    return parts


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_arrays_come_back(channels, tmp_path):
    given = arrays(channels)
    np.savez(tmp_path / "a.npz", **given)
    # A path as well as a str.
    for part, dataset in zip(("train", "test"), load_images(tmp_path / "a.npz"), strict=True):
        assert len(dataset) == 6
        for index in range(6):
            image, label = dataset[index]
            assert image.dtype == torch.uint8 and label == index % 3
            expected = given[f"x_{part}"][index].reshape(8, 4, channels or 1).transpose(2, 0, 1)
            assert np.array_equal(image.numpy(), expected)


def test_encoded_images(tmp_path):
    from PIL import Image

    given = arrays()
    stored = {}
    for part in ("train", "test"):
        files = []
        for image in given[f"x_{part}"]:
            file = io.BytesIO()
            Image.fromarray(image).save(file, "png")
            files.append(file.getvalue())
        stored[f"bytes_{part}"] = np.frombuffer(b"".join(files), np.uint8)
        stored[f"off_{part}"] = np.cumsum([0, *map(len, files)])
        stored[f"y_{part}"] = given[f"y_{part}"]
    np.savez(tmp_path / "a.npz", **stored)
    train, test = load_images(str(tmp_path / "a.npz"))
    assert np.array_equal(train[5][0].numpy(), given["x_train"][5].transpose(2, 0, 1))
    assert np.array_equal(test[0][0].numpy(), given["x_test"][0].transpose(2, 0, 1))


@pytest.mark.parametrize("image_size", [None, 4])
def test_downloaded_sets_are_those_of_their_files(image_size, tmp_path, monkeypatch):
    """One way for all arrays: a result on a file can be repeated on what torchvision downloads."""
    from torchvision import datasets

    rng = np.random.default_rng(0)
    monkeypatch.chdir(tmp_path)
    sides, found = {"cifar10": (32, 32, 3), "fashion_mnist": (28, 28)}, {}
    for name, shape in sides.items():
        for part in ("train", "test"):
            found[name, f"x_{part}"] = rng.integers(0, 256, (5, *shape), dtype=np.uint8)
            found[name, f"y_{part}"] = np.array([3, 1, 4, 1, 5])
    raw = tmp_path / "data/FashionMNIST/raw"
    raw.mkdir(parents=True)
    for part, theirs in (("train", "train"), ("test", "t10k")):
        images, labels = (found["fashion_mnist", f"{each}_{part}"] for each in "xy")
        header = np.array([0x803, *images.shape], ">i4").tobytes()
        (raw / f"{theirs}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = np.array([0x801, len(labels)], ">i4").tobytes()
        labels = labels.astype(np.uint8).tobytes()
        (raw / f"{theirs}-labels-idx1-ubyte").write_bytes(header + labels)
    folder = tmp_path / "data" / datasets.CIFAR10.base_folder
    folder.mkdir(parents=True)

    def stored(name: str, content: object) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    for part in ("train", "test"):
        images, labels = (found["cifar10", f"{each}_{part}"] for each in "xy")
        rows = images.transpose(0, 3, 1, 2).reshape(5, -1)
        listed = [stored(f"{part}_batch", {"data": rows, "labels": labels.tolist()})]
        monkeypatch.setattr(datasets.CIFAR10, f"{part}_list", listed)
    filename, md5 = stored("batches.meta", {"label_names": [*"abcdef"]})
    meta = {"filename": filename, "key": "label_names", "md5": md5}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)

    for name in sides:
        arrays = {key: value for (of, key), value in found.items() if of == name}
        np.savez(tmp_path / "a.npz", **arrays)
        expected = load_images(str(tmp_path / "a.npz"), image_size=image_size)
        for ours, theirs in zip(load_images(name, image_size=image_size), expected, strict=True):
            for one, other in zip(ours.tensors, theirs.tensors, strict=True):
                assert one.dtype == other.dtype and torch.equal(one, other)


def test_resizing_is_the_mean_of_what_a_pixel_covers(tmp_path):
    """Trap: shrinking by interpolation between four neighbours, which skips the rest."""
    given = arrays(None)
    np.savez(tmp_path / "a.npz", **given)
    image, _ = load_images(str(tmp_path / "a.npz"), image_size=2)[0][0]
    expected = given["x_train"][0].reshape(2, 4, 2, 2).astype(float).mean((1, 3))
    assert np.abs(image[0].numpy() - expected).max() <= 0.5


@pytest.mark.parametrize("parts", [(), ("train", "val"), ("train", "test")])
def test_folders(parts, tmp_path):
    from PIL import Image

    for part in parts or (".",):
        for number in range(10):
            folder = tmp_path / part / f"class{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (12, 8), (number, 0, 0)).save(folder / f"{number}.png")
    train, test = load_images(tmp_path, image_size=np.int64(8))
    assert (len(train), len(test)) == ((10, 10) if parts else (8, 2))
    assert train[0][0].shape == (3, 8, 8)
    reds = [[int(image[0, 0, 0]) for image, _ in part] for part in (train, test)]
    assert sorted(reds[0] + reds[1]) == sorted(list(range(10)) * (2 if parts else 1))
    labels = [label for _, label in train]
    assert all(label == red % 2 for label, red in zip(labels, reds[0], strict=True))
    # Trap: the first images of a folder that is sorted by class are all of one class.
    assert len(set(labels[:6])) == 2


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"x_test": None}, "must hold the array 'x_test', it holds"),
        ({"y_train": None}, "must hold the array 'y_train', it holds"),
        ({"x_train": np.zeros((6, 8, 4))}, "x_train must be uint8"),
    ],
)
def test_incomplete_arrays_raise(change, text, tmp_path):
    given = {name: value for name, value in {**arrays(), **change}.items() if value is not None}
    np.savez(tmp_path / "a.npz", **given)
    with pytest.raises(ValueError, match=text):
        load_images(str(tmp_path / "a.npz"))


def test_nothing_there_raises(tmp_path):
    with pytest.raises(ValueError, match="a folder that exists"):
        load_images(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="there is no such file"):
        load_images(str(tmp_path / "nowhere.npz"))
    with pytest.raises(ValueError, match="image_size=None: images of a folder"):
        load_images(str(tmp_path))
    with pytest.raises(ValueError, match="image_size=64: textures are 48 x 48"):
        load_images("textures", image_size=64)


@pytest.mark.no_hook
def test_a_source_is_a_name_or_a_path():
    with pytest.raises(TypeError, match="source=3: must be a str or a path, got int"):
        load_images(3)


def folders(root, parts: dict[str, str], count: int = 2) -> str:
    from PIL import Image

    for part, classes in parts.items():
        for name in classes:
            for number in range(count):
                folder = root / part / name
                folder.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    return str(root)


def test_parts_with_other_classes_raise(tmp_path):
    """Trap: class numbers that count another list of folders in each part."""
    source = folders(tmp_path, {"train": "abc", "val": "bc"})
    with pytest.raises(ValueError, match=r"the same classes, \['a'\] are in one of them only"):
        load_images(source, image_size=8)


def test_a_train_part_alone_raises(tmp_path):
    """Trap: the folders `train` and `valid` taken for two classes."""
    source = folders(tmp_path, {"train": "ab", "valid": "ab"})
    with pytest.raises(ValueError, match="has a folder train, must have one of"):
        load_images(source, image_size=8)


def test_the_held_out_part_has_every_class(tmp_path):
    """Trap: the held-out fifth of a folder, sorted by class, is its first or last classes."""
    folders(tmp_path, {".": "abcdefgh"}, count=10)
    train, test = load_images(tmp_path, image_size=8)
    labels = [[label for _, label in part] for part in (train, test)]
    assert set(labels[0]) == set(range(8)) and len(set(labels[1])) >= 6
    for part in labels:  # and both are mixed
        assert sum(one != other for one, other in pairwise(part)) > len(part) / 2


@pytest.mark.parametrize("parts", [".", "train val"])
def test_a_folder_without_classes_has_no_labels(parts, tmp_path):
    for part in parts.split():
        folders(tmp_path / part, {".": "."}, count=10)
    sets = load_images(tmp_path, image_size=8)
    assert [len(part) for part in sets] == ([8, 2] if parts == "." else [10, 10])
    reds = set()
    for part in sets:
        for item in part:
            (image,) = item
            reds.add(int(image[0, 0, 0]))
    assert reds == set(range(10))
    batch = next(iter(DataLoader(sets[0], 4)))
    assert len(batch) == 1 and batch[0].shape == (4, 3, 8, 8)
    PixelStatistics.from_dataset(sets[0])
    with pytest.raises(
        TypeError, match=r"labels are needed, batch 0 has images alone; a folder ne"
    ):
        evaluate(lambda images: images.flatten(1).float(), *sets)


def test_empty_classes(tmp_path):
    """Refused in training, by name; allowed in test, since the classes must be the same."""
    source = folders(tmp_path, {"train": "ab", "val": "a"})
    (tmp_path / "val/b").mkdir()
    train, test = load_images(source, image_size=8)
    assert {label for _, label in train} == {0, 1} and {label for _, label in test} == {0}
    for part in ("train", "val"):
        (tmp_path / part / "c").mkdir()
    with pytest.raises(ValueError, match=r"of every class, \['c'\] hold none"):
        load_images(source, image_size=8)


def test_folders_with_too_few_images(tmp_path):
    with pytest.raises(ValueError, match=r"must hold images \(\.jpg, .*\), holds none"):
        load_images(tmp_path, image_size=8)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/notes.txt").touch()
    (tmp_path / "a/._1.jpg").touch()  # macOS writes such files, and Jupyter such folders
    (tmp_path / "a/.ipynb_checkpoints").mkdir()
    (tmp_path / "a/.ipynb_checkpoints/1.jpg").touch()
    with pytest.raises(ValueError, match="holds none"):
        load_images(tmp_path, image_size=8)
    folders(tmp_path, {".": "a"}, count=1)
    with pytest.raises(ValueError, match="must hold at least 2 images, of which one is held out"):
        load_images(tmp_path, image_size=8)
    (tmp_path / "stray.png").touch()
    with pytest.raises(ValueError, match=r"holds 'stray\.png' beside 'a'"):
        load_images(tmp_path, image_size=8)


def test_one_image_in_each_part(tmp_path):
    folders(tmp_path, {"train": "a", "val": "a"}, count=1)
    assert [len(part) for part in load_images(tmp_path, image_size=8)] == [1, 1]


def test_a_path_is_no_name(tmp_path, monkeypatch):
    """Trap: the folder `textures` in the working directory can never be read."""
    folders(tmp_path, {"textures": "ab"})
    monkeypatch.chdir(tmp_path)
    assert load_images(Path("textures"), image_size=8)[0][0][0].shape == (3, 8, 8)


def test_a_validation_part_is_found(tmp_path):
    train, test = load_images(folders(tmp_path, {"train": "ab", "validation": "ab"}), image_size=8)
    assert {label for _, label in train} == {label for _, label in test} == {0, 1}
