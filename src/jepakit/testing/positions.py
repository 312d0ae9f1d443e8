"""Whether an encoder knows where patches are: elsewhere the same ones must look different."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from jepakit.testing.breach import Law, fail
from jepakit.tokens import TokenSet

__all__: list[str] = []


@torch.no_grad()
def check_positions(
    encoder: Callable[..., Tensor],
    images: Tensor,
    grid_size: tuple[int, ...],
    generator: torch.Generator,
    tolerance: float,
) -> None:
    """Two patches side by side, then the second one in the last place of the grid.

    Not only their place changes but their distance too, which is all that rotary positions see. In
    their order they stay first and second, so positions that go by it change nothing.
    """
    size = math.prod(grid_size)
    if size < 3:
        return  # there is no other distance
    sides = [side // cells for side, cells in zip(images.shape[2:], grid_size, strict=True)]
    patches = torch.randn(2, images.shape[1], *sides, generator=generator).to(images)
    outputs = []
    for places in ((0, 1), (0, size - 1)):
        image = torch.zeros_like(images[:1])
        for patch, place in zip(patches, places, strict=True):
            _patch(image[0], place, grid_size).copy_(patch)
        idx = torch.tensor([places], device=images.device)
        here = TokenSet(idx, torch.ones_like(idx, dtype=torch.bool), grid_size, padded=False)
        outputs.append(encoder(image, here))
    near, far = outputs
    gap, largest = float((near - far).abs().max()), float(near.abs().max())
    if gap <= tolerance * largest:
        fail(
            Law.POSITIONS,
            f"two patches at positions 0 and 1, and the same ones at 0 and {size - 1}, give "
            f"outputs that differ by {gap:.3g} at most (largest value {largest:.3g}); a visible "
            "patch needs the position that its index names, not that of its slot (positions=False "
            "for an encoder that has none on purpose)",
        )


def _patch(image: Tensor, place: int, grid_size: tuple[int, ...]) -> Tensor:
    """The pixels of one patch of `[c, *sides]`, as a view."""
    for axis in range(len(grid_size), 0, -1):
        cells = grid_size[axis - 1]
        side = image.shape[axis] // cells
        image = image.narrow(axis, place % cells * side, side)
        place //= cells
    return image
