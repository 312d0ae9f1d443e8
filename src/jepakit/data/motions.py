"""`moving_textures`: a labelled set of clips that is generated in code and needs no download."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import TensorDataset

from jepakit._checks import as_int

__all__ = ["moving_textures"]

_FRAMES, _SIDE = 8, 32  # of a clip; pixels
_CANVAS = 80  # side of a texture, pixels; it repeats beyond
_BLOBS = 16  # random heights along each side of a canvas
_CELLS = 4  # along each side of a frame: parts that show the texture at places far from each other
_SPEED = (0.8, 2.0)  # pixels per frame
_TURN = (0.1, 0.2)  # radians per frame
_PERIOD = (4.0, 6.0)  # of a motion to and fro, or on a circle; frames
_TILT = 0.3  # largest angle in radians between a direction and its axis
_NOISE = 0.05  # of each pixel of each frame
_CHUNK = 500  # clips generated at once

_MOTIONS = (
    *("right", "down", "left", "up", "clockwise", "anticlockwise"),
    *("to and fro", "up and down", "circle", "at random"),
)


def moving_textures(
    num_train: int = 10_000, num_test: int = 2000
) -> tuple[TensorDataset, TensorDataset]:
    """Generate training and test clips of random textures; the way they move is the label.

    Clips are uint8 `[1, 8, 32, 32]`, labels are 0 to 9: steadily right, down, left and up; turning
    clockwise and anticlockwise; to and fro; up and down; on a circle; at random.
    Speeds, periods, centres and phases vary, and so does the angle of a direction by up to 17
    degrees. A clip is divided into 16 cells of random form, which show the texture at places far
    from each other: what one cell shows does not continue in the next, but moves as it does. A
    texture has no edges, its place and orientation are random, and so every frame on its own has
    the same distribution in all classes: only a sequence of frames shows the label.

    The same arguments give the same clips.

    Args:
        num_train: Number of training clips.
        num_test: Number of test clips.

    Example:
        >>> from jepakit.data import moving_textures
        >>> train, test = moving_textures(num_train=20, num_test=5)
        >>> train[0][0].shape, len(test)
        (torch.Size([1, 8, 32, 32]), 5)
    """
    num_train = as_int("num_train", num_train, minimum=1)
    num_test = as_int("num_test", num_test, minimum=1)
    with torch.device("cpu"):  # whatever the default device is
        return _generate(num_train, seed=0), _generate(num_test, seed=1)


def _generate(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(_MOTIONS), (count,), generator=generator)
    clips = [_draw(chunk, generator) for chunk in torch.split(labels, _CHUNK)]
    return TensorDataset(torch.cat(clips), labels)


def _draw(labels: Int[Tensor, " b"], generator: torch.Generator) -> UInt8[Tensor, "b 1 t h w"]:
    """One clip for each label."""
    count = len(labels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        drawn = torch.rand(count, *shape, generator=generator, dtype=torch.float32)
        return low + (high - low) * drawn

    def normal(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=generator, dtype=torch.float32)

    # Coordinates of the texture under each pixel of each frame, in pixels: moved, turned, scaled.
    # Its place and its orientation are random at every time, so no frame shows the motion.
    moved, turned = _motion(labels, uniform, normal)
    rows, columns = torch.meshgrid(2 * [torch.arange(_SIDE, dtype=torch.float32)], indexing="ij")
    centre = uniform(_SIDE / 4, 3 * _SIDE / 4, 2, 1, 1, 1)
    x, y = (torch.stack([columns, rows])[:, None] - centre - moved[..., None, None]).unbind(1)
    angle = (uniform(0, 2 * math.pi, 1) + turned)[..., None, None]
    cells = _cells(torch.stack([columns, rows]), uniform)
    places = uniform(0, _CANVAS, 2, _CELLS**2)
    offset = places.gather(2, repeat(cells, "b h w -> b xy (h w)", xy=2))
    offset = rearrange(offset, "b xy (h w) -> b xy 1 h w", h=_SIDE)
    u = x * angle.cos() + y * angle.sin() + offset[:, 0]
    v = y * angle.cos() - x * angle.sin() + offset[:, 1]

    clips = _sampled(_canvas(normal(1, _BLOBS, _BLOBS)), u % _CANVAS, v % _CANVAS)
    clips = torch.sigmoid(4 * clips)
    clips = clips + _NOISE * normal(*clips.shape[1:])
    return (clips.clamp(0, 1) * 255).round().byte()


def _motion(
    labels: Int[Tensor, " b"], uniform: Callable[..., Tensor], normal: Callable[..., Tensor]
) -> tuple[Float[Tensor, "b 2 t"], Float[Tensor, "b t"]]:
    """Displacement along x and y in pixels, and the angle of rotation, in every frame."""
    time = torch.arange(_FRAMES, dtype=torch.float32) - (_FRAMES - 1) / 2
    speed, turn, period = uniform(*_SPEED, 1), uniform(*_TURN, 1), uniform(*_PERIOD, 1)
    phase = 2 * math.pi * time / period + uniform(0, 2 * math.pi, 1)
    swing = 0.2 * speed * period  # amplitude: the highest speed is about that of steady motion

    def of(*names: str) -> Tensor:
        """1 for clips of these motions, 0 for others."""
        numbers = torch.tensor([_MOTIONS.index(name) for name in names])
        return torch.isin(labels, numbers)[:, None].float()

    along = of("right", "down", "left", "up") * speed * time
    along = along + of("to and fro", "up and down", "circle") * swing * phase.sin()
    across = of("circle") * swing * phase.cos()
    quarters = of("down", "up and down") + 2 * of("left") + 3 * of("up")
    angle = math.pi / 2 * quarters + uniform(-_TILT, _TILT, 1)
    x, y = along * angle.cos() - across * angle.sin(), along * angle.sin() + across * angle.cos()
    jumps = of("at random")[..., None] * speed[..., None] * normal(2, _FRAMES)
    return torch.stack([x, y], dim=1) + jumps, (of("clockwise") - of("anticlockwise")) * turn * time


def _cells(pixels: Float[Tensor, "2 h w"], uniform: Callable[..., Tensor]) -> Int[Tensor, "b h w"]:
    """Number of the nearest of some points for every pixel; points are a grid moved at random."""
    side = _SIDE / _CELLS
    rows, columns = torch.meshgrid(2 * [torch.arange(_CELLS) + 0.5], indexing="ij")
    points = side * torch.stack([columns, rows]).flatten(1) + uniform(-side / 3, side / 3, 2, 1)
    points = points + uniform(-side / 3, side / 3, 2, _CELLS**2)
    # Squares of distances, without that of the pixel, which is the same for all points.
    squares = points.square().sum(dim=1)[..., None, None]
    return (squares - 2 * torch.einsum("x h w, b x n -> b n h w", pixels, points)).argmin(dim=1)


def _canvas(heights: Float[Tensor, "b c n n"]) -> Float[Tensor, "b c side side"]:
    """Smooth heights that repeat beyond the edges; the first row and column are also the last."""
    factor = _CANVAS // _BLOBS
    padded = F.pad(heights, (2, 3, 2, 3), mode="circular")
    smooth = F.interpolate(padded, scale_factor=factor, mode="bicubic")
    inner = slice(2 * factor, 2 * factor + _CANVAS + 1)
    return smooth[..., inner, inner]


def _sampled(
    canvases: Float[Tensor, "b c side side"],
    u: Float[Tensor, "b t h w"],
    v: Float[Tensor, "b t h w"],
) -> Float[Tensor, "b c t h w"]:
    """Values of canvases at coordinates in pixels."""
    grid = 2 * torch.stack([u, v], dim=-1) / _CANVAS - 1
    rows = rearrange(grid, "b t h w xy -> b (t h) w xy")
    sampled = F.grid_sample(canvases, rows, align_corners=True)
    return rearrange(sampled, "b c (t h) w -> b c t h w", h=_SIDE)
