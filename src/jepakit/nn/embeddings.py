"""Embeddings of clips, images and series for `TokenViT`: one linear map of each patch."""

from collections.abc import Sequence
from typing import cast

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from jepakit._checks import as_image_size, as_int, as_ints, check_floating
from jepakit.tokens import TokenSet, take_tokens

__all__ = ["Frames", "Patches", "Tubelets"]


class PatchEmbedding(nn.Module):
    """A linear map of patches that do not overlap, on one to three axes.

    The map is kept as a convolution, so that its weights have the names and shapes of other
    libraries. It is computed as a matrix product of the patches of the context alone.
    """

    def __init__(self, patch_size: tuple[int, ...], embed_dim: int, in_channels: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.embed_dim = as_int("embed_dim", embed_dim, minimum=1)
        self.in_channels = as_int("in_channels", in_channels, minimum=1)
        kinds: list[type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]]
        kinds = [nn.Conv1d, nn.Conv2d, nn.Conv3d]
        convolution = kinds[len(patch_size) - 1]
        # torch takes tuples of any length.
        size = cast(int, patch_size)
        self.proj = convolution(self.in_channels, self.embed_dim, kernel_size=size, stride=size)

    def grid_size_of(self, input_size: Sequence[int]) -> tuple[int, ...]:
        """Grid of inputs of an `input_size`; raise unless patches divide it."""
        return grid_of(self, as_ints("input_size", input_size, minimum=1))

    def forward(
        self, inputs: Float[Tensor, "b c *sides"], context: TokenSet | None = None
    ) -> Float[Tensor, "b n d"]:
        """Embeddings of all patches of `inputs`, row-major, or of those of the `context` alone."""
        check_floating("inputs", inputs)
        shape, patch = tuple(inputs.shape), self.patch_size
        check_channels(self, shape)
        grid = grid_of(self, shape[2:])
        # On two axes: "b c (g0 p0) (g1 p1) -> b (g0 g1) (c p0 p1)".
        cells, pixels = ([f"{letter}{axis}" for axis in range(len(grid))] for letter in "gp")
        sides = " ".join(f"({g} {p})" for g, p in zip(cells, pixels, strict=True))
        pattern = f"b c {sides} -> b ({' '.join(cells)}) (c {' '.join(pixels)})"
        patches = rearrange(inputs, pattern, **dict(zip(pixels, patch, strict=True)))
        if context is not None:
            patches = take_tokens(patches, context)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


def grid_of(embed: PatchEmbedding, sides: tuple[int, ...]) -> tuple[int, ...]:
    """`grid_size_of` without checks of types, with which a compiler would fix the sides."""
    patch = embed.patch_size
    if len(sides) != len(patch):
        rule = f"must have {len(patch)} axes beside batch and channels"
        raise ValueError(f"inputs of size {sides}: {rule}")
    if any(side % length for side, length in zip(sides, patch, strict=True)):
        raise ValueError(f"inputs of size {sides}: must be multiples of the patch size {patch}")
    return tuple(side // length for side, length in zip(sides, patch, strict=True))


def check_channels(embed: PatchEmbedding, shape: tuple[int, ...]) -> None:
    """Raise unless inputs have their channels on axis 1."""
    if len(shape) < 2 or shape[1] != embed.in_channels:
        hint = "; move the axis of channels there" * (embed.in_channels in shape[2:])
        rule = f"must have {embed.in_channels} channels on axis 1"
        raise ValueError(f"inputs {shape}: {rule}{hint}")


class Tubelets(PatchEmbedding):
    """Embeddings of the tubelets of clips `[b c t h w]`: patches of a few frames.

    Args:
        tubelet_size: `(frames, height, width)`, frames and pixels; divides the clips.
        embed_dim: Width of the embeddings.
        in_channels: Channels of the clips.

    Raises:
        ValueError: If the size has not three entries. In a call, if it does not divide the clips.

    Example:
        >>> import torch
        >>> from jepakit.nn import Tubelets
        >>> embed = Tubelets((2, 16, 16), 192)
        >>> embed(torch.randn(1, 3, 8, 64, 64)).shape
        torch.Size([1, 64, 192])
        >>> embed.grid_size_of((8, 64, 64))
        (4, 4, 4)

    Source:
        ViViT's tubelets (arXiv:2103.15691), in the size of V-JEPA (arXiv:2404.08471); weights
        `proj.weight` `[d c t h w]` and `proj.bias` as in both.
    """

    def __init__(self, tubelet_size: Sequence[int], embed_dim: int, in_channels: int = 3) -> None:
        size = as_ints("tubelet_size", tubelet_size, minimum=1)
        if len(size) != 3:
            raise ValueError(f"tubelet_size={size}: must be (frames, height, width)")
        super().__init__(size, embed_dim, in_channels)


class Patches(PatchEmbedding):
    """Embeddings of the patches of images or spectrograms `[b c h w]`.

    Args:
        patch_size: Pixels, `(height, width)`, or one number for squares; divides the images.
        embed_dim: Width of the embeddings.
        in_channels: Channels of the images.

    Example:
        >>> import torch
        >>> from jepakit.nn import Patches
        >>> Patches((16, 4), 192, in_channels=1)(torch.randn(2, 1, 128, 64)).shape
        torch.Size([2, 128, 192])
    """

    def __init__(
        self, patch_size: int | Sequence[int], embed_dim: int, in_channels: int = 3
    ) -> None:
        super().__init__(as_image_size("patch_size", patch_size), embed_dim, in_channels)


class Frames(PatchEmbedding):
    """Embeddings of the frames of series `[b c length]`: windows that do not overlap.

    Args:
        frame_size: Samples of a frame; divides the series.
        embed_dim: Width of the embeddings.
        in_channels: Channels of the series.

    Example:
        >>> import torch
        >>> from jepakit.nn import Frames
        >>> Frames(25, 64, in_channels=12)(torch.randn(2, 12, 1000)).shape
        torch.Size([2, 40, 64])
    """

    def __init__(self, frame_size: int, embed_dim: int, in_channels: int = 1) -> None:
        super().__init__((as_int("frame_size", frame_size, minimum=1),), embed_dim, in_channels)
