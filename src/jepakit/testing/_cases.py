"""Cases for the contracts: a perturbed copy of a module, its gradients, and ragged token sets."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepakit.testing._violation import Law, require, require_close, require_nowhere
from jepakit.tokens import TokenSet

T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """A module or function under test, the generator of its inputs, and the tolerance."""

    part: Callable[..., Tensor]
    generator: torch.Generator
    tolerance: float

    def noise(self, shape: Sequence[int], like: Tensor) -> Tensor:
        return torch.randn(tuple(shape), generator=self.generator).to(like)

    def trainable_parameters(self) -> dict[str, Tensor]:
        if not isinstance(self.part, nn.Module):
            return {}
        named = self.part.named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    def gradients(self, out: Tensor, incoming: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        """Gradients of inputs ("the images") and parameters; unused ones are missing."""
        require(Law.INTERFACE, out.requires_grad, "the output carries no gradient")
        leaves = {f"the {name}": tensor for name, tensor in inputs.items()}
        leaves |= self.trainable_parameters()
        found = torch.autograd.grad(
            out, list(leaves.values()), incoming, retain_graph=True, allow_unused=True
        )
        named = zip(leaves, found, strict=True)
        return {name: gradient for name, gradient in named if gradient is not None}

    def require_close(
        self, law: Law, what: str, actual: Tensor, expected: Tensor, scale: float | None = None
    ) -> None:
        require_close(law, what, actual, expected, self.tolerance, scale=scale)

    def require_same_gradients(
        self, what: str, actual: dict[str, Tensor], expected: dict[str, Tensor]
    ) -> None:
        """Fail if values at padding changed a gradient; `what` is followed by its name."""
        for name, gradient in expected.items():
            self.require_close(Law.PADDING, f"{what} {name}", actual[name], gradient)

    def require_positions(self, what: str, gap: float, largest: float, hint: str) -> None:
        """Fail if outputs at different positions are as close as equal ones may be."""
        found = f"{what} differ by at most {gap:.3g} (largest value {largest:.3g})"
        require(Law.POSITIONS, gap > self.tolerance * largest, found, hint=hint)


def require_padding_is_zero(out: Tensor, tokens: TokenSet) -> None:
    """Fail unless the output `[*batch n d]` of `tokens` is exactly zero at padding."""
    axes = "sample target entry" if out.dim() == 4 else "sample entry"
    require_nowhere(
        Law.PADDING,
        (out != 0).any(dim=-1) & ~tokens.valid,
        lambda *at: (
            "the output of padding must be exactly zero, got values up to "
            f"{out[at].abs().max().item():.3g}"
        ),
        axes=axes,
    )


def perturbed_copy(part: T, generator: torch.Generator) -> T:
    """Copy `part` in eval mode and add noise to its parameters.

    Biases of 0, a zero-initialised last layer or a layer scale of 1e-5 would hide what a part does.
    """
    part = copy.deepcopy(part)
    if isinstance(part, nn.Module):
        part.eval()
        with torch.no_grad():
            for parameter in part.parameters():
                if parameter.is_floating_point():
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(noise.to(parameter), alpha=0.02)
    return part


def ragged_token_sets(
    grid_size: tuple[int, ...],
    batch_shape: tuple[int, ...],
    generator: torch.Generator,
    device: torch.device,
    *,
    extra_padding: int,
) -> TokenSet:
    """Sets of random sizes from 1 up; the first has one member, the second is the whole grid."""
    size = math.prod(grid_size)
    counts = torch.randint(1, size + 1, batch_shape, generator=generator)
    counts.view(-1)[0] = 1
    counts.view(-1)[1:2] = size
    order = torch.rand(*batch_shape, size, generator=generator).argsort(dim=-1)
    # The only member of the first set is the last patch: padding has index 0, so with patch 0 an
    # encoder that treats padding as patch 0 would go unnoticed.
    order.view(-1, size)[0] = size - 1 - torch.arange(size)
    tokens = TokenSet.from_mask(order < counts.unsqueeze(-1), grid_size).to(device)
    return _padded_further(tokens, extra_padding)


def _padded_further(tokens: TokenSet, extra_padding: int) -> TokenSet:
    idx, valid = F.pad(tokens.idx, (0, extra_padding)), F.pad(tokens.valid, (0, extra_padding))
    return TokenSet(idx, valid, tokens.grid_size, padded=True)


def single_sample(tokens: TokenSet, sample: int) -> TokenSet:
    """The sets of one sample, as a batch of 1 without needless padding."""
    return TokenSet.from_mask(tokens.to_mask()[sample : sample + 1], tokens.grid_size)


def emptied(tokens: TokenSet, samples: slice) -> TokenSet:
    """The same sets, those of `samples` without any member; one entry of padding is added."""
    mask = tokens.to_mask()
    mask[samples] = False
    return _padded_further(TokenSet.from_mask(mask, tokens.grid_size), 1)
