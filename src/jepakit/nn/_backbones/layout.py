"""Shapes and axis orders of a model's patches and features, found by running it once."""

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from jepakit._wrapped import eval_mode
from jepakit.nn._backbones.backbone import Missing, missing_attribute
from jepakit.nn._backbones.stand_in import FollowedBy, stand_in

Order = Literal["NLC", "NHWC", "NCHW"]


@dataclass(frozen=True)
class Layout:
    """Sizes and axis orders of the outputs of `patch_embed` and `forward_features`."""

    image_size: tuple[int, int]
    patch_grid: tuple[int, int]
    patch_dim: int
    patch_order: Order
    grid: tuple[int, int]
    feature_order: Order
    num_prefix_tokens: int

    @property
    def stride(self) -> tuple[int, int]:
        """Pixels from one feature to the next."""
        (h, w), (rows, columns) = self.image_size, self.grid
        return h // rows, w // columns

    @property
    def patches_per_cell(self) -> tuple[int, int]:
        """Patches under one feature, along each axis."""
        (h, w), (rows, columns) = self.patch_grid, self.grid
        return h // rows, w // columns


def layout_of(model: Any) -> Layout | Missing:
    if missing := missing_attribute(model, "patch_embed", "forward_features", "num_features"):
        return missing
    if not isinstance(model.patch_embed, nn.Module):
        return Missing("a patch_embed that is a module")
    if isinstance(model.patch_embed, nn.ModuleList):
        return Missing("a patch_embed that returns one tensor of patches")
    size = image_size_of(model)
    if size is None:
        return Missing("an image size (patch_embed.img_size or pretrained_cfg['input_size'])")
    outputs: list[Any] = []

    def record(output: Any) -> Any:
        outputs.append(output)
        return output

    recording = stand_in(model, patch_embed=FollowedBy(model.patch_embed, record))
    try:
        with eval_mode(model), torch.no_grad():
            like = next(model.parameters())
            channels = getattr(model, "in_chans", 3)
            features = recording.forward_features(like.new_zeros(1, channels, *size))
    except Exception as error:  # a model of any kind can fail in any way
        return Missing(f"a forward_features that runs on images of {size} pixels ({error})")
    patches = outputs[0] if len(outputs) == 1 else None
    patches = patches[0] if isinstance(patches, tuple) else patches  # (patches, grid)
    if not isinstance(patches, Tensor):
        return Missing("a patch_embed that returns one tensor of patches")
    if not isinstance(features, Tensor):
        return Missing("a forward_features that returns one tensor")
    return _infer(model, size, patches, features)


def _infer(
    model: Any, size: tuple[int, int], patches: Tensor, features: Tensor
) -> Layout | Missing:
    """Infer the layout from the outputs for one image of `size` pixels.

    Swin-T with 224 pixels: patches [1, 56, 56, 96] and features [1, 7, 7, 768], both NHWC, so the
    stride is 32 pixels and a cell of the output covers 8 x 8 patches.
    """
    known_grid = getattr(model.patch_embed, "grid_size", None)
    orders = _possible_orders(features, size, model.num_features, None)
    if len(orders) != 1:
        return Missing(f"features in a known order, not {tuple(features.shape)} for {size} pixels")
    order = orders[0]
    # With as many channels as cells along a side, patches fit both orders: take the features'.
    orders = _possible_orders(patches, size, None, known_grid)
    if len(orders) != 1 and order not in orders:
        return Missing(f"patches in a known order, not {tuple(patches.shape)} for {size} pixels")
    patch_order = orders[0] if len(orders) == 1 else order
    if patch_order == "NLC":
        grid = known_grid or _grid_of_square_patches(patches.shape[1], size)
        if grid is None or grid[0] * grid[1] != patches.shape[1]:
            return Missing(f"a grid for the {patches.shape[1]} patches of patch_embed")
        patch_grid = (int(grid[0]), int(grid[1]))
    else:
        patch_grid = _sides(patches, patch_order)

    prefix = 0
    if order == "NLC":
        token = getattr(model, "cls_token", None)
        prefix = getattr(model, "num_prefix_tokens", 0 if token is None else token.shape[1])
        pooled = _pooled_grid(patch_grid, features.shape[1] - prefix)
        if pooled is None or pooled == (1, 1) != patch_grid:
            return Missing(f"patch tokens in forward_features, not {tuple(features.shape)}")
        feature_grid = pooled
    else:
        feature_grid = _sides(features, order)
    sides = zip(size, patch_grid, feature_grid, strict=True)
    if any(p % f or s % f for s, p, f in sides):
        return Missing(f"a last stage whose grid {feature_grid} divides {patch_grid} and {size}")
    patch_dim = patches.shape[1 if patch_order == "NCHW" else -1]
    return Layout(size, patch_grid, patch_dim, patch_order, feature_grid, order, prefix)


def flat_features(
    model: Any, features: Float[Tensor, "b ..."], order: Order
) -> Float[Tensor, "b n d"]:
    """Return features as a row-major list."""
    if hasattr(model, "reroll"):
        # Hiera keeps the features of a stage in the order of its pooling windows.
        features = model.reroll(features, len(model.blocks) - 1)
        order = "NHWC" if features.dim() == 4 else "NLC"
    if order == "NHWC":
        return rearrange(features, "b h w d -> b (h w) d")
    return rearrange(features, "b d h w -> b (h w) d") if order == "NCHW" else features


def image_size_of(model: Any) -> tuple[int, int] | None:
    """Return the image size in pixels that a model was built for, if it records one."""
    size = getattr(model.patch_embed, "img_size", None)
    if size is None and hasattr(model, "tokens_spatial_shape"):  # Hiera
        axes = zip(model.tokens_spatial_shape, model.patch_stride, strict=True)
        size = tuple(count * stride for count, stride in axes)
    if size is None:
        configured = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
        size = configured[1:] if configured else None
    if isinstance(size, int):
        size = (size, size)
    return None if size is None else cast("tuple[int, int]", tuple(size))


def _possible_orders(
    x: Tensor, size: tuple[int, int], dim: int | None, grid: tuple[int, int] | None
) -> list[Order]:
    """Return the orders in which the sides are in the image's proportions.

    Known channels `dim` and a known `grid` have to match too.
    """
    if x.dim() == 3:
        return ["NLC"] if dim in (None, x.shape[-1]) else []
    if x.dim() != 4:
        return []
    orders: list[Order] = []
    candidates: list[tuple[Order, int]] = [("NHWC", x.shape[3]), ("NCHW", x.shape[1])]
    for order, channels in candidates:
        rows, columns = _sides(x, order)
        in_proportion = rows * size[1] == columns * size[0]
        if in_proportion and dim in (None, channels) and grid in (None, (rows, columns)):
            orders.append(order)
    return orders


def _sides(x: Tensor, order: Order) -> tuple[int, int]:
    return (x.shape[2], x.shape[3]) if order == "NCHW" else (x.shape[1], x.shape[2])


def _grid_of_square_patches(count: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """Return the grid of `count` square patches: 12 on 48 x 64 pixels are (3, 4)."""
    for rows in range(1, count + 1):
        if count % rows == 0 and rows * size[1] == count // rows * size[0]:
            return rows, count // rows
    return None


def _pooled_grid(grid: tuple[int, int], count: int) -> tuple[int, int] | None:
    """Return the grid of `count` cells after pooling square windows: (8, 16) to 8 is (2, 4)."""
    for window in range(1, min(grid) + 1):
        if grid[0] % window == grid[1] % window == 0 and grid[0] * grid[1] == count * window**2:
            return grid[0] // window, grid[1] // window
    return None
