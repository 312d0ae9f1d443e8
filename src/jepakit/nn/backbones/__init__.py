"""The one place that knows timm's models: a family of them a file."""

from typing import Any

from jepakit.nn.backbones.backbone import Backbone
from jepakit.nn.backbones.errors import UnsupportedBackboneError

__all__ = ["Backbone", "UnsupportedBackboneError", "adapt"]


def adapt(model: Any, mask_mode: str) -> Backbone:
    """The first family whose every need a model meets; raises with what is missing."""
    # timm costs seconds to import, and whoever has a backbone has paid for it already.
    from jepakit.nn.backbones.naflex import NaFlexBackbone
    from jepakit.nn.backbones.patch_drop import PatchDropBackbone
    from jepakit.nn.backbones.relative import RelativeBackbone
    from jepakit.nn.backbones.replace import ReplacingBackbone

    name = type(model).__name__
    if mask_mode == "replace":
        lack = ReplacingBackbone.lacks(model)
        if lack is None:
            return ReplacingBackbone(model)
        raise UnsupportedBackboneError(
            f"backbone={name}: hidden patches cannot be replaced, it lacks {lack}; a Swin does, "
            "such as timm.create_model('swin_tiny_patch4_window7_224', num_classes=0), and any "
            "plain vision transformer"
        )
    families: list[type[Backbone]] = [PatchDropBackbone, RelativeBackbone, NaFlexBackbone]
    lacks = [family.lacks(model) for family in families]
    for family, lack in zip(families, lacks, strict=True):
        if lack is None:
            return family(model)
    if ReplacingBackbone.lacks(model) is None:
        hint = "MaskedViT(backbone, mask_mode='replace') takes it"
    else:
        hint = (
            "a plain vision transformer can, such as "
            "timm.create_model('vit_small_patch16_224', num_classes=0)"
        )
    raise UnsupportedBackboneError(
        f"backbone={name}: patches cannot be dropped from it, it lacks {lacks[0]}; {hint}"
    )
