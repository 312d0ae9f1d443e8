"""Image files of every mode become the same 8-bit colours; broken ones are named."""

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader

from jepakit.data import load_images
from jepakit.data._image_files import read_image

GREY = np.add.outer(np.arange(12), 15 * np.arange(16)).astype(np.uint8)  # [12 16], 0 to 236


def content(image: Image.Image, kind: str = "png", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def of(image: Image.Image, kind: str = "png", **options) -> np.ndarray:
    """What is read from the file of an image: `[h w 3]`."""
    return read_image(content(image, kind, **options), "it").permute(1, 2, 0).numpy()


def all_grey(values: np.ndarray) -> np.ndarray:
    return np.stack([values] * 3, axis=-1)


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_grey_of_16_bits_is_scaled(kind):
    """Trap: `convert("RGB")` clips what is above 255, and the image is white."""
    wide = Image.fromarray(GREY.astype(np.uint16) * 257)
    assert np.array_equal(of(wide, kind), all_grey(GREY))
    ends = Image.fromarray(np.array([[0, 128, 129, 65535]], dtype=np.uint16))
    assert of(ends, kind)[0, :, 0].tolist() == [0, 0, 1, 255]


def test_integers_of_32_bits():
    fits = Image.fromarray(GREY.astype(np.int32) * 257)
    assert np.array_equal(of(fits, "tiff"), all_grey(GREY))
    with pytest.raises(ValueError, match="its pixels are 0 to 70000, must be of 8 or 16 bits"):
        of(Image.fromarray(np.array([[0, 70000]], dtype=np.int32)), "tiff")
    with pytest.raises(ValueError, match="its pixels are floats of unknown range"):
        of(Image.fromarray(np.zeros((2, 2), np.float32)), "tiff")


def test_grey_and_bilevel():
    assert np.array_equal(of(Image.fromarray(GREY)), all_grey(GREY))
    assert np.array_equal(of(Image.fromarray(GREY > 100)), all_grey(255 * (GREY > 100)))


def test_palette():
    """Trap: the indices of the palette taken for grey."""
    image = Image.fromarray(GREY // 80, "L").convert("P")
    colours = np.array([[255, 0, 0], [0, 200, 0], [0, 0, 90]], dtype=np.uint8)
    image.putpalette(colours.tobytes())
    assert np.array_equal(of(image), colours[GREY // 80])


def test_cmyk():
    """Ink, not light: no ink is white."""
    inks = np.zeros((2, 2, 4), np.uint8)
    inks[0, 1] = (0, 255, 255, 0)  # magenta and yellow: red
    inks[1, 0] = (0, 0, 0, 255)
    found = of(Image.fromarray(inks, "CMYK"), "tiff")
    assert found[0].tolist() == [[255, 255, 255], [255, 0, 0]] and found[1, 0].tolist() == [0, 0, 0]


def test_transparent_pixels_lie_over_white():
    """Trap: the colours of transparent pixels, which no viewer shows, appear."""
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0] = [(10, 20, 30, 255), (10, 20, 30, 0), (0, 0, 0, 51)]
    expected = [[10, 20, 30], [255, 255, 255], [204, 204, 204]]
    assert of(Image.fromarray(pixels))[0].tolist() == expected
    grey_alpha = np.array([[[7, 255], [7, 0]]], np.uint8)
    assert of(Image.fromarray(grey_alpha))[0].tolist() == [[7] * 3, [255] * 3]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "L").convert("P")
    palette.putpalette([1, 2, 3, 4, 5, 6])
    assert of(palette, transparency=1)[0].tolist() == [[1, 2, 3], [255, 255, 255]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_as_the_camera_was_held(orientation):
    """Trap: photographs lie on their side. Each orientation says where row 0 and column 0 are."""
    stored = {
        1: GREY, 2: GREY[:, ::-1], 3: GREY[::-1, ::-1], 4: GREY[::-1], 5: GREY.T,
        6: np.rot90(GREY, 1), 7: GREY[::-1, ::-1].T, 8: np.rot90(GREY, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(
        of(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)[..., 0], GREY
    )


def test_sizes_of_all_kinds_become_one_square():
    """The centre is kept, its aspect too; a strip does not take gigabytes on the way."""
    for width, height in ((16, 16), (64, 16), (16, 50), (1, 1), (3, 40_000)):
        image = Image.new("RGB", (width, height), (9, 99, 199))
        found = read_image(content(image), "it", 8)
        assert torch.equal(
            found, torch.tensor([9, 99, 199], dtype=torch.uint8).view(3, 1, 1).expand(3, 8, 8)
        )
    columns = np.repeat(np.arange(0, 96, dtype=np.uint8)[None], 32, axis=0)
    found = read_image(content(Image.fromarray(columns)), "it", 32)
    assert torch.equal(found[0, 0].long(), torch.arange(32, 64))


@pytest.fixture
def broken(tmp_path):
    """A folder in which only `photo 3.jpg` is broken, by what is written there."""
    for number in range(4):
        Image.fromarray(GREY).save(tmp_path / f"photo {number}.jpg")
    return tmp_path, tmp_path / "photo 3.jpg"


def absurd_png() -> bytes:
    """A file of a few bytes with a header of 10^10 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return content(Image.fromarray(GREY))[:8] + chunk


CONTENTS = {
    "truncated": lambda whole: whole[: len(whole) // 2],
    "empty": lambda whole: b"",
    "text": lambda whole: b"<html>404: Not Found</html>",
    "header of absurd size": lambda whole: absurd_png(),
    "broken header": lambda whole: whole[:4] + b"\xff" * 40,
}


@pytest.mark.parametrize("case", CONTENTS)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_file_is_named(broken, case, workers):
    """Trap: `OSError: image file is truncated`, of one among a million."""
    root, path = broken
    path.write_bytes(CONTENTS[case](path.read_bytes()))
    both = ConcatDataset(load_images(root, image_size=8))
    with pytest.raises(ValueError, match=r"photo 3\.jpg': cannot be read, .*replace or remove it"):
        list(DataLoader(both, 1, num_workers=workers))


def test_the_dataset_is_pickled(broken):
    """Law 13: workers that are spawned get a pickled copy."""
    train, _ = load_images(broken[0], image_size=8)
    assert torch.equal(pickle.loads(pickle.dumps(train))[0][0], train[0][0])
