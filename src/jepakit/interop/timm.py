"""`timm_state_dict`: the backbone's weights under timm's names."""

from jaxtyping import Shaped
from torch import Tensor, nn

from jepakit._wrapped import unwrap
from jepakit.interop._weights import backbone_tensors, cpu_copy, unwrapped
from jepakit.nn import MaskedViT
from jepakit.teacher import EMATeacher

__all__ = ["timm_state_dict"]


def timm_state_dict(model: nn.Module) -> dict[str, Shaped[Tensor, "..."]]:
    """Weights of an encoder's or a teacher's backbone under timm's names, without wrappers.

    Saved with `torch.save`, they are loaded by `timm.create_model(..., checkpoint_path=...)` into a
    model that is built with the same arguments; that takes no jepakit. Tensors are copies on the
    CPU. The mask token of `mask_mode="replace"` belongs to the encoder and is not included.

    Args:
        model: A `MaskedViT`, or an `EMATeacher` of one; wrapped by DDP or `torch.compile` or not.

    Example:
        >>> import timm
        >>> from jepakit import EMATeacher, MaskedViT
        >>> from jepakit.interop import timm_state_dict
        >>> arguments = dict(img_size=32, embed_dim=24, depth=1, num_heads=2, num_classes=0)
        >>> encoder = MaskedViT(timm.create_model("vit_tiny_patch16_224", **arguments))
        >>> state = timm_state_dict(EMATeacher(encoder, 0.996))
        >>> timm.create_model("vit_tiny_patch16_224", **arguments).load_state_dict(state)
        <All keys matched successfully>
    """
    inner = unwrap(model)
    if isinstance(inner, EMATeacher):
        encoder = unwrapped("model.module", inner.module, MaskedViT)
    else:
        encoder = unwrapped("model", inner, MaskedViT)
    return {name: cpu_copy(tensor) for name, tensor in backbone_tensors("model", encoder).items()}
