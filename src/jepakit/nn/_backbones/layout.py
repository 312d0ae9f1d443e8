"""How a model lays out its patches and its features, found by running it once."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepakit.nn._backbones.backbone import missing

__all__: list[str] = []

Order = Literal["NLC", "NHWC", "NCHW"]


@dataclass(frozen=True)
class Layout:
    """Sizes and orders of what `patch_embed` and `forward_features` put out."""

    image_size: tuple[int, int]
    patch_grid: tuple[int, int]
    patch_dim: int
    patches: Order
    grid: tuple[int, int]
    features: Order
    num_prefix_tokens: int

    @property
    def stride(self) -> tuple[int, int]:
        """Pixels from one feature to the next."""
        (h, w), (rows, columns) = self.image_size, self.grid
        return h // rows, w // columns

    @property
    def cells(self) -> tuple[int, int]:
        """Patches under one feature, along each axis."""
        (h, w), (rows, columns) = self.patch_grid, self.grid
        return h // rows, w // columns


def layout_of(model: Any) -> Layout | str:
    """The layout, or what is missing for one."""
    name = missing(model, "patch_embed", "forward_features", "num_features")
    if name is not None:
        return name
    if not isinstance(model.patch_embed, nn.Module):
        return "a patch_embed that is a module"
    size = image_size_of(model)
    if size is None:
        return "an image size (patch_embed.img_size or pretrained_cfg['input_size'])"
    seen: list[Any] = []
    hook = model.patch_embed.register_forward_hook(lambda *call: seen.append(call[2]))
    try:
        with _in_eval(model), torch.no_grad():
            like = next(model.parameters())
            out = model.forward_features(like.new_zeros(1, _channels(model), *size))
    except Exception as error:
        return f"a forward_features that runs on images of {size} pixels ({error})"
    finally:
        hook.remove()
    patches = seen[0][0] if seen and isinstance(seen[0], tuple) else (seen or [None])[0]
    if len(seen) != 1 or not isinstance(patches, Tensor):
        return "a patch_embed that returns one tensor of patches"
    if not isinstance(out, Tensor):
        return "a forward_features that returns one tensor"
    return _read(model, size, patches, out)


def _read(model: Any, size: tuple[int, int], patches: Tensor, out: Tensor) -> Layout | str:
    built = getattr(model.patch_embed, "grid_size", None)
    orders = _orders(out, size, model.num_features, None)
    order = orders[0] if len(orders) == 1 else None
    if order is None:
        return f"features in a known order, not {tuple(out.shape)} for {size} pixels"
    # As many channels as cells along a side fit both orders: then it is that of the features.
    fits = _orders(patches, size, None, built)
    patch_order = fits[0] if len(fits) == 1 else order if order in fits else None
    if patch_order is None:
        return f"patches in a known order, not {tuple(patches.shape)} for {size} pixels"
    if patch_order == "NLC":
        grid = built or _square(patches.shape[1], size)
        if grid is None or grid[0] * grid[1] != patches.shape[1]:
            return f"a grid for the {patches.shape[1]} patches of patch_embed"
        patch_grid = (int(grid[0]), int(grid[1]))
    else:
        patch_grid = _sides(patches, patch_order)
    dim = patches.shape[1 if patch_order == "NCHW" else -1]

    prefix = 0
    if order == "NLC":
        token = getattr(model, "cls_token", None)
        prefix = getattr(model, "num_prefix_tokens", 0 if token is None else token.shape[1])
        found = _coarser(patch_grid, out.shape[1] - prefix)
        if found is None or found == (1, 1) != patch_grid:
            return f"patch tokens in forward_features, not {tuple(out.shape)}"
        features_grid = found
    else:
        features_grid = _sides(out, order)
    sides = zip(size, patch_grid, features_grid, strict=True)
    if any(p % f or s % f for s, p, f in sides):
        return (
            f"a last stage whose grid {features_grid} divides that of the patches {patch_grid} "
            f"and the image {size}"
        )
    return Layout(size, patch_grid, dim, patch_order, features_grid, order, prefix)


def flat_tokens(model: Any, out: Float[Tensor, "b ..."], order: Order) -> Float[Tensor, "b n d"]:
    """Features as a row-major list of tokens."""
    if hasattr(model, "reroll"):
        # Hiera keeps a stage's tokens in the order of its pooling windows.
        out = model.reroll(out, len(model.blocks) - 1)
        return out.flatten(1, 2) if out.dim() == 4 else out
    if order == "NHWC":
        return out.flatten(1, 2)
    return out.flatten(2).transpose(1, 2) if order == "NCHW" else out


def image_size_of(model: Any) -> tuple[int, int] | None:
    """Pixels that a model was built for, as far as it says."""
    size = getattr(model.patch_embed, "img_size", None)
    if size is None and hasattr(model, "tokens_spatial_shape"):  # Hiera
        cells = zip(model.tokens_spatial_shape, model.patch_stride, strict=True)
        size = tuple(count * stride for count, stride in cells)
    if size is None:
        configured = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
        size = configured[1:] if configured else None
    if isinstance(size, int):
        size = (size, size)
    return None if size is None else cast(tuple[int, int], tuple(size))


def _channels(model: Any) -> int:
    return cast(int, getattr(model, "in_chans", 3))


def _orders(
    x: Tensor, size: tuple[int, int], dim: int | None, grid: tuple[int, int] | None
) -> list[Order]:
    """How the axes can be read: space in the image's proportions, width and grid if known."""
    if x.dim() == 3:
        return ["NLC"] if dim in (None, x.shape[-1]) else []
    if x.dim() != 4:
        return []

    def fits(sides: torch.Size, width: int) -> bool:
        in_proportion = sides[0] * size[1] == sides[1] * size[0]
        return in_proportion and dim in (None, width) and grid in (None, tuple(sides))

    found: list[Order] = []
    if fits(x.shape[1:3], x.shape[3]):
        found.append("NHWC")
    if fits(x.shape[2:4], x.shape[1]):
        found.append("NCHW")
    return found


def _sides(x: Tensor, order: Order) -> tuple[int, int]:
    return (x.shape[2], x.shape[3]) if order == "NCHW" else (x.shape[1], x.shape[2])


def _square(count: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """The grid of square patches that has `count` of them."""
    for rows in range(1, count + 1):
        if count % rows == 0 and rows * size[1] == count // rows * size[0]:
            return rows, count // rows
    return None


def _coarser(grid: tuple[int, int], count: int) -> tuple[int, int] | None:
    """The grid with `count` positions that comes from `grid` by pooling square windows."""
    for cells in range(1, min(grid) + 1):
        if grid[0] % cells == grid[1] % cells == 0 and grid[0] * grid[1] == count * cells**2:
            return grid[0] // cells, grid[1] // cells
    return None


@contextmanager
def _in_eval(model: nn.Module) -> Iterator[None]:
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in training:
            module.training = mode
