"""Initial weights for training from scratch."""

from torch import nn

from jepakit._checks import as_number, type_name

__all__ = ["init_linear_weights"]


def init_linear_weights(module: nn.Module, *, gain: float = 1.0) -> None:
    r"""Draw the weights of all linear layers anew, with a std that suits their width, in place.

    $$W_{ij} \sim \mathcal{N}\big(0,\ g^2 / d_\mathrm{in}\big), \quad
        \mathrm{cut\ at\ two\ standard\ deviations}$$

    timm, I-JEPA and others draw them with a std of 0.02, which is $1 / \sqrt{d_\mathrm{in}}$ at a
    width of 2,500. In a model 64 wide a layer then shrinks its input eightfold, so the blocks hardly
    change what the patch embedding gives: the features of the first teacher are nearly linear in
    the pixels of their own patch, and little of the image can be predicted in them. A short run of
    a narrow model never leaves that state.

    For training from scratch: pretrained weights are overwritten. Call it before the teacher is
    copied and before `torch.compile`. Biases, norms and convolutions stay as they are.

    Args:
        module: Encoder, predictor or a container of both.
        gain: $g$.

    Raises:
        ValueError: If the module has no linear layer.

    Example:
        >>> import timm
        >>> from jepakit import MaskedViT
        >>> from jepakit.nn import init_linear_weights
        >>> narrow = timm.create_model("vit_tiny_patch16_224", num_classes=0, embed_dim=64)
        >>> encoder = MaskedViT(narrow)
        >>> init_linear_weights(encoder)
        >>> round(encoder.backbone.blocks[0].mlp.fc1.weight.std().item(), 2)
        0.11

    Source:
        LeCun et al., Efficient BackProp (1998). Differences: the normal distribution is cut, which
        leaves 0.88 of the std, and biases are left alone.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: must be an nn.Module, got {type_name(module)}")
    gain = as_number("gain", gain, positive=True)
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise ValueError(f"module: {type(module).__name__} has no nn.Linear")
    for layer in layers:
        std = gain / layer.in_features**0.5
        nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
