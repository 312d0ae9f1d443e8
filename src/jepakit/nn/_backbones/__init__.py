"""The one place that knows timm's models: a family of them a file."""

from typing import Any

from torch import nn

from jepakit._checks import type_name
from jepakit.nn._backbones.backbone import Backbone, DroppingBackbone
from jepakit.nn._backbones.errors import UnsupportedBackboneError

__all__ = ["Backbone", "UnsupportedBackboneError", "adapt"]


def adapt(model: Any, mask_mode: str) -> Backbone:
    """The family whose every need a model meets; raises with what is missing."""
    if not isinstance(model, nn.Module):
        hint = (
            f"timm.create_model({model!r}, num_classes=0)" if isinstance(model, str) else "timm's"
        )
        raise TypeError(f"backbone: must be a model, such as {hint}, got {type_name(model)}")
    # timm costs seconds to import, and whoever has a backbone has paid for it already.
    from jepakit.nn._backbones.layout import Layout, layout_of
    from jepakit.nn._backbones.naflex import NaFlexBackbone
    from jepakit.nn._backbones.patch_drop import PatchDropBackbone
    from jepakit.nn._backbones.relative import RelativeBackbone
    from jepakit.nn._backbones.replace import ReplacingBackbone

    name = type(model).__name__
    families: list[type[DroppingBackbone]] = [PatchDropBackbone, RelativeBackbone, NaFlexBackbone]
    # The family that a model looks like says best what it lacks.
    nearest: type[DroppingBackbone] = PatchDropBackbone
    if hasattr(model, "embeds"):
        nearest = NaFlexBackbone
    elif hasattr(model, "rel_pos_bias") or hasattr(model, "shared_rel_pos"):
        nearest = RelativeBackbone
    dropping = next((family for family in families if family.lacks(model) is None), None)
    if mask_mode == "drop" and dropping is not None:
        return dropping(model)
    layout = layout_of(model)
    if mask_mode == "replace" and isinstance(layout, Layout):
        return ReplacingBackbone(model, layout)

    if mask_mode == "drop":
        problem = f"patches cannot be dropped from it, it lacks {nearest.lacks(model)}"
    else:
        problem = f"hidden patches cannot be replaced in it, it lacks {layout}"
    if hasattr(model, "mask_mode"):
        hint = "it is wrapped already"
    elif not hasattr(model, "forward_features"):
        hint = "give it a model of timm's own, without features_only"
    elif mask_mode == "drop" and isinstance(layout, Layout):
        hint = "mask_mode='replace' takes it"
    elif mask_mode == "replace" and dropping is not None:
        hint = "mask_mode='drop' takes it"
    elif mask_mode == "replace":
        hint = "swin_tiny_patch4_window7_224 is a model that works"
    else:
        hint = "vit_small_patch16_224 is a model that works"
    raise UnsupportedBackboneError(f"backbone={name}: {problem}; {hint}")
