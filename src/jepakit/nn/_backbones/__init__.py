"""Adapters from timm's model families to `MaskedViT`; the only code that imports timm."""

from typing import Any

from torch import nn

from jepakit._checks import type_name
from jepakit.nn._backbones.backbone import Backbone, DroppingBackbone, UnsupportedBackboneError

__all__ = ["Backbone", "UnsupportedBackboneError", "adapt"]


def adapt(model: Any, mask_mode: str) -> Backbone:
    """Return the adapter for a model; raise with the missing feature if there is none."""
    if not isinstance(model, nn.Module):
        hint = (
            f"timm.create_model({model!r}, num_classes=0)" if isinstance(model, str) else "timm's"
        )
        raise TypeError(f"backbone: must be a model, such as {hint}, got {type_name(model)}")
    # timm takes seconds to import; who has a timm model has imported it already.
    from jepakit.nn._backbones.layout import Layout, layout_of
    from jepakit.nn._backbones.naflex import NaFlexBackbone
    from jepakit.nn._backbones.patch_drop import PatchDropBackbone
    from jepakit.nn._backbones.relative import RelativeBackbone
    from jepakit.nn._backbones.replace import ReplacingBackbone

    families: list[type[DroppingBackbone]] = [PatchDropBackbone, RelativeBackbone, NaFlexBackbone]
    dropping = next((f for f in families if f.missing_feature(model) is None), None)
    if mask_mode == "drop" and dropping is not None:
        return dropping(model)
    layout = layout_of(model)
    if mask_mode == "replace" and isinstance(layout, Layout):
        return ReplacingBackbone(model, layout)

    if mask_mode == "replace":
        problem = f"hidden patches cannot be replaced in it, it lacks {layout}"
    else:
        # The most useful reason is that of the family which the model resembles.
        nearest: type[DroppingBackbone] = PatchDropBackbone
        if hasattr(model, "embeds"):
            nearest = NaFlexBackbone
        elif hasattr(model, "rel_pos_bias") or hasattr(model, "shared_rel_pos"):
            nearest = RelativeBackbone
        problem = f"patches cannot be dropped from it, it lacks {nearest.missing_feature(model)}"
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
    raise UnsupportedBackboneError(f"backbone={type(model).__name__}: {problem}; {hint}")
