"""`UnsupportedBackboneError`: the model cannot be given a context, and why."""

__all__ = ["UnsupportedBackboneError"]


class UnsupportedBackboneError(TypeError):
    """A model that `MaskedViT` cannot run on visible patches alone; names what it lacks.

    Example:
        >>> import timm
        >>> from jepakit import MaskedViT
        >>> try:
        ...     MaskedViT(timm.create_model("resnet10t"))
        ... except TypeError as error:
        ...     print(type(error).__name__)
        UnsupportedBackboneError
    """
