"""Adapters from timm's model families to `MaskedViT`; the only code that imports timm."""

from typing import Any

from torch import nn

from jepakit._checks import type_name
from jepakit.nn._backbones.backbone import Backbone, DroppingBackbone, UnsupportedBackboneError

__all__ = ["Backbone", "UnsupportedBackboneError", "adapt"]


def adapt(model: Any, mask_mode: str) -> Backbone:
    """Return the adapter for a model; raise with the missing feature if there is none."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            "backbone: must be a model, such as timm.create_model('vit_small_patch16_224', "
            f"num_classes=0), got {type_name(model)}"
        )
    embed = getattr(model, "patch_embed", None)
    if isinstance(embed, nn.Module) and any(isinstance(m, nn.Conv3d) for m in embed.modules()):
        raise UnsupportedBackboneError(
            f"backbone={type(model).__name__}: its patch_embed holds a Conv3d, but MaskedViT takes "
            "images; for clips, jepakit.nn.TokenViT takes embed=Tubelets(...), and "
            "TokenViT.inflate(timm_vit) takes the weights of an image model"
        )
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
        other, other_works, example = "drop", dropping is not None, "swin_tiny_patch4_window7_224"
    else:
        # The most useful reason is that of the family which the model resembles.
        nearest: type[DroppingBackbone] = PatchDropBackbone
        if hasattr(model, "embeds"):
            nearest = NaFlexBackbone
        elif hasattr(model, "rel_pos_bias") or hasattr(model, "shared_rel_pos"):
            nearest = RelativeBackbone
        problem = f"patches cannot be dropped from it, it lacks {nearest.missing_feature(model)}"
        other, other_works, example = "replace", isinstance(layout, Layout), "vit_small_patch16_224"
    hint = f"mask_mode={other!r} takes it" if other_works else f"{example} is a model that works"
    if hasattr(model, "mask_mode"):
        hint = "it is wrapped already"
    elif not hasattr(model, "forward_features"):
        hint = "give it a model of timm's own, without features_only"
    raise UnsupportedBackboneError(f"backbone={type(model).__name__}: {problem}; {hint}")
