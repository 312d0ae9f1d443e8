"""Block sizes of the published I-JEPA sampler, with its quirks."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__: list[str] = []

Sizes = tuple[Int[Tensor, " k"], Int[Tensor, " k"]]


@dataclass(frozen=True)
class ReferenceSizes:
    """The arguments that decide a block's size, and the sizes that random numbers give."""

    grid_size: tuple[int, int]
    target_scale: tuple[float, float]
    target_aspect_ratio: tuple[float, float]
    context_scale: tuple[float, float]
    tied_aspect: bool
    floor_area: bool
    clip_below_grid: bool
    square_context: bool

    def targets(self, uniforms: Float[Tensor, "k 2"]) -> Sizes:
        """Of targets."""
        u_scale, u_aspect = uniforms.double().unbind(1)
        area = self._area(self.target_scale, u_scale)
        low, high = self.target_aspect_ratio
        aspect = (
            low + (high - low) * u_scale if self.tied_aspect else low * (high / low) ** u_aspect
        )
        return self._clipped((area * aspect).sqrt(), (area / aspect).sqrt())

    def contexts(self, uniforms: Float[Tensor, " k"]) -> Sizes:
        """Of context blocks, before targets are removed."""
        area = self._area(self.context_scale, uniforms.double())
        height, width = self.grid_size
        aspect = 1.0 if self.square_context else height / width
        return self._clipped((area * aspect).sqrt(), (area / aspect).sqrt())

    def _area(self, scale: tuple[float, float], u: Tensor) -> Tensor:
        area = math.prod(self.grid_size) * (scale[0] + (scale[1] - scale[0]) * u)
        return area.floor() if self.floor_area else area

    def _clipped(self, h: Tensor, w: Tensor) -> Sizes:
        height, width = self.grid_size
        h, w = h.round().long(), w.round().long()
        if self.clip_below_grid:
            return h.clamp_max(height - 1), w.clamp_max(width - 1)
        return h.clamp(1, height), w.clamp(1, width)

    def smallest(self, role: str) -> tuple[int, int, int]:
        """Area, height and width of the smallest "target" or "context" block that can be drawn.

        It is looked for among 2^16 draws: what is rarer than that and missed here does no harm,
        since no loop waits for it.
        """
        line = torch.arange(2**16, dtype=torch.float32, device="cpu") / 2**16
        if role == "context":
            h, w = self.contexts(line)
        elif self.tied_aspect:
            h, w = self.targets(line[:, None].expand(-1, 2))
        else:
            side = torch.linspace(0, 1, 2**8, dtype=torch.float32, device="cpu")
            h, w = self.targets(torch.cartesian_prod(side, side))
        at = int((h * w).argmin())
        return int(h[at] * w[at]), int(h[at]), int(w[at])

    def raised(self, role: str, percent: int) -> "ReferenceSizes":
        """With both ends of the role's scale raised to `percent` where they lie below."""
        ends = self.context_scale if role == "context" else self.target_scale
        low, high = (max(end, percent / 100) for end in ends)
        if role == "context":
            return replace(self, context_scale=(low, high))
        return replace(self, target_scale=(low, high))
