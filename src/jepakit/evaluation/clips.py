"""`JoinedClips` and `TimeSteps`: encoders of clips for probes of whole videos and of frames."""

from typing import Any, cast

from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn

from jepakit._checks import as_int, check_floating
from jepakit._wrapped import unwrap

__all__ = ["JoinedClips", "TimeSteps"]


class JoinedClips(nn.Module):
    """Features of several clips of a video, joined as if they were one clip.

    Hand it to `attentive_probe` as `encode`, with items `[s, c, t, h, w]`: the head attends to the
    features of all clips at once. With `views=True` in the probe, items are
    `[v, s, c, t, h, w]`, and predictions are averaged over the views. All clips are encoded on
    their own, at once.

    Args:
        encoder: Maps clips `[b c t h w]` to features `[b n d]`, such as a `TokenViT`.

    Raises:
        ValueError: In a call, if clips have not the shape `[b s c t h w]`.

    Example:
        >>> import torch
        >>> from jepakit.evaluation import JoinedClips
        >>> from jepakit.nn import TokenViT, Tubelets
        >>> encoder = TokenViT((2, 2, 2), 96, 1, 3, embed=Tubelets((2, 16, 16), 96))
        >>> JoinedClips(encoder)(torch.randn(2, 5, 3, 4, 32, 32)).shape  # 5 clips of 8 tokens
        torch.Size([2, 40, 96])

    Source:
        The evaluation of V-JEPA (arXiv:2404.08471). Difference: without embeddings of the place of
        a clip in its video, which it adds.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, clips: Float[Tensor, "b s c t h w"]) -> Float[Tensor, "b n d"]:
        """Features of all `clips` of each video, clip after clip."""
        check_floating("clips", clips)
        if clips.dim() != 6:
            raise ValueError(f"clips {tuple(clips.shape)}: must be several a video [b s c t h w]")
        features = self.encoder(rearrange(clips, "b s c t h w -> (b s) c t h w"))
        return cast(Tensor, rearrange(features, "(b s) n d -> b (s n) d", b=len(clips)))


class TimeSteps(nn.Module):
    """Features of every step of time of clips, or of every frame: means over the places of a step.

    Args:
        encoder: Maps clips `[b c t h w]` to features `[b n d]` of a grid `(T, H, W)`, which its
            `grid_size_of` says, such as a `TokenViT`.
        repeats: Number of frames that share the features of their step: the frames of a tubelet
            give one vector for each frame, 1 one for each step.

    Raises:
        TypeError: In a call, if the encoder has no `grid_size_of`.
        ValueError: In a call, if the features are not those of a grid of three axes.

    Example:
        >>> import torch
        >>> from jepakit.evaluation import TimeSteps
        >>> from jepakit.nn import TokenViT, Tubelets
        >>> encoder = TokenViT((2, 2, 2), 96, 1, 3, embed=Tubelets((2, 16, 16), 96))
        >>> clips = torch.randn(2, 3, 4, 32, 32)
        >>> TimeSteps(encoder)(clips).shape, TimeSteps(encoder, repeats=2)(clips).shape
        (torch.Size([2, 2, 96]), torch.Size([2, 4, 96]))
    """

    def __init__(self, encoder: nn.Module, repeats: int = 1) -> None:
        super().__init__()
        self.encoder = encoder
        self.repeats = as_int("repeats", repeats, minimum=1)

    def forward(self, clips: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b steps d"]:
        """Mean features of each step of the `clips`, in the order of time."""
        check_floating("clips", clips)
        if clips.dim() != 5:
            raise ValueError(f"clips {tuple(clips.shape)}: must be [b c t h w]")
        encoder: Any = unwrap(self.encoder)
        if not hasattr(encoder, "grid_size_of"):
            kind = type(encoder).__name__
            raise TypeError(f"encoder={kind}: must have grid_size_of; of a teacher pass its module")
        grid = encoder.grid_size_of(clips.shape[2:])
        features = self.encoder(clips)
        if len(grid) != 3 or features.shape[1] != grid[0] * grid[1] * grid[2]:
            got = f"{tuple(features.shape)} for the grid {grid}"
            raise ValueError(f"encoder: must return all features of a grid of 3 axes, got {got}")
        steps = reduce(features, "b (t n) d -> b t d", "mean", t=grid[0])
        return cast(Tensor, steps.repeat_interleave(self.repeats, dim=1))

    def extra_repr(self) -> str:
        """Arguments that the submodules do not show."""
        return f"repeats={self.repeats}"
