"""`textured_shapes`: a labelled image set that is generated in code and needs no download."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import TensorDataset

from jepakit._checks import as_int

__all__ = ["textured_shapes"]

_SIDE = 48  # of an image, pixels
_PERIOD = (5.6, 8.4)  # of a texture, pixels
_ROTATION = 0.4  # largest angle in radians, so that stripes of four directions stay apart
_COLOUR_POINTS = 4  # random colours along each side; between them colours change smoothly
_CHUNK = 1000  # images generated at once


def _wave(x: Tensor) -> Tensor:
    return torch.cos(2 * math.pi * x)


def _distance(u: Tensor, v: Tensor) -> Tensor:
    """Distance to the centre of the unit cell."""
    return ((u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2).sqrt()


def _joint(x: Tensor) -> Tensor:
    """Distance to the nearest whole number."""
    return 0.5 - (x % 1 - 0.5).abs()


# Height of a texture over coordinates in periods: light where it is positive, dark where negative.
_TEXTURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "vertical stripes": lambda u, v: _wave(u),
    "horizontal stripes": lambda u, v: _wave(v),
    "rising stripes": lambda u, v: _wave((u + v) / 1.4),
    "falling stripes": lambda u, v: _wave((u - v) / 1.4),
    "zigzag": lambda u, v: _wave(v + 1.6 * ((u / 1.5) % 1 - 0.5).abs()),
    "checks": lambda u, v: 2 * _wave(u) * _wave(v),
    "lattice": lambda u, v: torch.maximum(_wave(u), _wave(v)) - 0.6,
    "dots": lambda u, v: 3 * (0.38 - _distance(u, v)),
    "rings": lambda u, v: _wave(2.2 * _distance(u, v)) - 0.3,
    "bricks": lambda u, v: 4 * (torch.minimum(_joint(v), 2 * _joint(u / 2 + v.floor() / 2)) - 0.19),
}


def textured_shapes(
    num_train: int = 10_000, num_test: int = 2000
) -> tuple[TensorDataset, TensorDataset]:
    """Generate training and test images, each of one textured shape; its texture is the label.

    Images are uint8 `[3, 48, 48]`, labels are 0 to 9: stripes in four directions, zigzag, checks,
    lattice, dots, rings and bricks. Each shape has its own outline, place and size, and its
    texture its own period, phase and rotation, bent at random. The light and the dark parts and the
    background take colours that vary over the image. So no pixel shows the label, nor do brightness
    and colour, and what is hidden follows from what is visible by the kind of the texture.

    The same arguments give the same images.

    Args:
        num_train: Number of training images.
        num_test: Number of test images.

    Example:
        >>> from jepakit.data import textured_shapes
        >>> train, test = textured_shapes(num_train=20, num_test=5)
        >>> train[0][0].shape, len(test)
        (torch.Size([3, 48, 48]), 5)
    """
    num_train = as_int("num_train", num_train, minimum=1)
    num_test = as_int("num_test", num_test, minimum=1)
    with torch.device("cpu"):  # whatever the default device is
        return _generate(num_train, seed=0), _generate(num_test, seed=1)


def _generate(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(_TEXTURES), (count,), generator=generator)
    images = [_draw(chunk, generator) for chunk in torch.split(labels, _CHUNK)]
    return TensorDataset(torch.cat(images), labels)


def _draw(labels: Int[Tensor, " b"], generator: torch.Generator) -> UInt8[Tensor, "b 3 side side"]:
    """One image for each label."""
    count = len(labels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        drawn = torch.rand(count, *shape, generator=generator, dtype=torch.float32)
        return low + (high - low) * drawn

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32)

    def smooth(channels: int, points: int) -> Tensor:
        """Random fields `[b channels side side]` of unit variance at `points` x `points` places."""
        coarse = normal(count, channels, points, points)
        return F.interpolate(coarse, (_SIDE, _SIDE), mode="bicubic", align_corners=True)

    def colours(darkest: float, brightest: float) -> Tensor:
        """Colours `[b 3 side side]` that vary over the image, with brightnesses in a range."""
        points = (_COLOUR_POINTS, _COLOUR_POINTS)
        hue, saturation, value = (
            uniform(0, 1, *points),
            uniform(0, 0.8, *points),
            uniform(darkest, brightest, *points),
        )
        rgb = _rgb(hue, saturation, value).permute(0, 3, 1, 2)
        return F.interpolate(rgb, (_SIDE, _SIDE), mode="bilinear", align_corners=True)

    rows, columns = torch.meshgrid(
        2 * [torch.arange(_SIDE, dtype=torch.float32) + 0.5], indexing="ij"
    )
    pixels = torch.stack([columns, rows])  # x and y of every pixel

    # Coordinates of the texture: bent by about 2.5 pixels, rotated, divided by the period.
    x, y = (pixels + 2.5 * smooth(2, 6)).unbind(1)
    angle, period = uniform(-_ROTATION, _ROTATION, 1, 1), uniform(*_PERIOD, 1, 1)
    u = (x * angle.cos() + y * angle.sin()) / period + uniform(0, 1, 1, 1)
    v = (y * angle.cos() - x * angle.sin()) / period + uniform(0, 1, 1, 1)
    height = torch.empty_like(u)
    for label, texture in enumerate(_TEXTURES.values()):
        members = labels == label
        height[members] = texture(u[members], v[members])
    light = torch.sigmoid(5 * height).unsqueeze(1)
    textured = light * colours(0.55, 1) + (1 - light) * colours(0.05, 0.45)

    # A disc with a wavy outline.
    centre = _SIDE * uniform(0.32, 0.68, 2, 1, 1)
    radius = _SIDE * uniform(0.34, 0.46, 1, 1) + 3 * smooth(1, 4).squeeze(1)
    distance = torch.hypot(*(pixels - centre).unbind(1))
    inside = torch.sigmoid(2 * (radius - distance)).unsqueeze(1)
    images = inside * textured + (1 - inside) * colours(0.1, 0.9)
    images = images + 0.02 * normal(*images.shape)
    return (images.clamp(0, 1) * 255).round().byte()


def _rgb(
    hue: Float[Tensor, "*shape"],
    saturation: Float[Tensor, "*shape"],
    value: Float[Tensor, "*shape"],
) -> Float[Tensor, "*shape 3"]:
    """Colours from hue, saturation and value, each in 0 to 1."""
    sector = (torch.tensor([5.0, 3.0, 1.0], dtype=value.dtype) + 6 * hue.unsqueeze(-1)) % 6
    weight = torch.minimum(sector, 4 - sector).clamp(0, 1)
    return value.unsqueeze(-1) * (1 - saturation.unsqueeze(-1) * weight)
