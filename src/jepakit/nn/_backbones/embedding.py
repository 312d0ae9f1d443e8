"""Image sizes of models that have a `patch_embed` of timm's kind."""

from typing import Any

__all__: list[str] = []


def built_grid(model: Any) -> tuple[int, int]:
    """Grid of patches of images of the size that the model was built for."""
    rows, columns = model.patch_embed.grid_size
    return rows, columns


def embedded_grid(model: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Grid of patches of images of `size` pixels; raises if the model was not built for them."""
    embed = model.patch_embed
    if not getattr(model, "dynamic_img_size", False):
        if size != tuple(embed.img_size):
            raise ValueError(
                f"images of {size[0]} x {size[1]} pixels: must be {embed.img_size[0]} x "
                f"{embed.img_size[1]}, as the backbone was built; build it with img_size={size} or "
                "dynamic_img_size=True"
            )
        return built_grid(model)
    patch = tuple(embed.feat_ratio(as_scalar=False))
    if not embed.dynamic_img_pad and any(side % p for side, p in zip(size, patch, strict=True)):
        raise ValueError(
            f"images of {size[0]} x {size[1]} pixels: sides must be multiples of the patch "
            f"size {patch}, or build the backbone with dynamic_img_pad=True"
        )
    rows, columns = embed.dynamic_feat_size(size)
    return rows, columns
