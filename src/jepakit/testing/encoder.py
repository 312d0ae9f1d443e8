"""`assert_encoder_contract`: the laws of an encoder that takes a context."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from jepakit._checks import as_bool, as_grid_size, as_int, as_number, check_tensor
from jepakit.testing._cases import (
    Case,
    emptied,
    perturbed_copy,
    ragged_token_sets,
    require_padding_is_zero,
    single_sample,
)
from jepakit.testing._violation import (
    Law,
    require,
    require_attributes,
    require_finite,
    require_nowhere,
    require_shape,
)
from jepakit.tokens import TokenSet

__all__ = ["assert_encoder_contract"]


def assert_encoder_contract(
    encoder: Callable[..., Tensor],
    images: Float[Tensor, "b ..."],
    *,
    tolerance: float = 1e-5,
    drops_hidden: bool = True,
    positions: bool = True,
    seed: int = 0,
) -> None:
    r"""Raise unless an encoder follows laws 3 to 6 in eval mode.

    - Law 3: $f(x, \text{everything}) = f(x)$, and every visible patch has an effect.
    - Law 4: with the set $S$ visible, $\partial f(x, S) / \partial x_p = 0$ exactly for
      $p \notin S$, other pixels there change nothing, and hidden patches cost no operations.
    - Law 5: the output of a sample is the same alone, in any batch, in any order and with any
      padding.
    - Law 6: padding comes out as exact zeros and gets no gradient; a sample without a visible patch
      gives no NaN.
    - Positions: the same patches at another distance on the grid give another output.

    The test runs on a copy with perturbed parameters (normal noise, std 0.02), because zero biases
    or a layer scale of 1e-5 would hide what a block does. Patches are assumed not to overlap: a
    stem whose receptive field is larger than its patch violates law 4.

    Args:
        encoder: Called `(images, context=None) -> [b n d]`, with `grid_size` and `embed_dim`.
        images: At least 2, all different, `[b, c, *sides]`; each side is a multiple of the grid's.
        tolerance: Largest allowed difference, as a fraction of the largest output.
        drops_hidden: Require fewer operations for one visible patch than for all. False for an
            encoder that masks hidden patches in attention instead of dropping them.
        positions: Require that the output depends on where patches are. False for an encoder
            without positions.
        seed: For the sets, the noise and the perturbed parameters.

    Raises:
        AssertionError: Names the violated law, what was found, and where.

    Example:
        >>> import timm, torch
        >>> from jepakit import MaskedViT
        >>> from jepakit.testing import assert_encoder_contract
        >>> backbone = timm.create_model(
        ...     "vit_tiny_patch16_224", num_classes=0, img_size=64, depth=2)
        >>> assert_encoder_contract(MaskedViT(backbone), torch.randn(4, 3, 64, 64))
    """
    tolerance = as_number("tolerance", tolerance, positive=True)
    as_bool("drops_hidden", drops_hidden)
    as_bool("positions", positions)
    generator = torch.Generator().manual_seed(as_int("seed", seed))
    encoder = perturbed_copy(encoder, generator)
    grid_size, dim = _read_interface(encoder, images)
    images = images.detach()
    tokens = ragged_token_sets(grid_size, (len(images),), generator, images.device, extra_padding=2)
    case = _Case(encoder, generator, tolerance, images, tokens, dim)

    _check_full_context(case)
    require_padding_is_zero(case.encode(images, tokens), tokens)
    _check_hidden_pixels(case)
    _check_gradients(case)
    _check_batch_mates(case)
    _check_nothing_visible(case)
    if positions:
        _check_positions(case)
    if drops_hidden:
        _check_cost(case)


def _read_interface(encoder: Any, images: Tensor) -> tuple[tuple[int, ...], int]:
    """Return grid and width of the encoder; raise unless the images fit the grid."""
    require_attributes("an encoder", encoder, ("grid_size", "embed_dim"))
    check_tensor("images", images)
    grid_size = as_grid_size("encoder.grid_size", encoder.grid_size)
    dim = as_int("encoder.embed_dim", encoder.embed_dim, minimum=1)
    sides = zip(images.shape[2:], grid_size, strict=False)
    divides = images.dim() == 2 + len(grid_size) and not any(side % cells for side, cells in sides)
    if len(images) < 2 or not divides:
        raise ValueError(
            f"images {tuple(images.shape)}: must be at least 2, [b, c, *sides] with sides that are "
            f"multiples of the encoder's grid {grid_size}"
        )
    return grid_size, dim


@dataclass(frozen=True)
class _Case(Case):
    images: Tensor
    tokens: TokenSet
    dim: int

    @property
    def grid_size(self) -> tuple[int, ...]:
        return self.tokens.grid_size

    def everything(self) -> TokenSet:
        return TokenSet.full(self.grid_size, (len(self.images),), device=self.images.device)

    def to_patches(self, images: Tensor) -> Tensor:
        """`[b N c *patch]` from `[b c *sides]`."""
        return self._rearrange(images, "b c {pixels} -> b ({grid}) c {patch}")

    def to_images(self, patches: Tensor) -> Tensor:
        return self._rearrange(patches, "b ({grid}) c {patch} -> b c {pixels}")

    def _rearrange(self, tensor: Tensor, pattern: str) -> Tensor:
        # On a grid of two axes, {pixels} is "(g0 p0) (g1 p1)", {grid} "g0 g1", {patch} "p0 p1".
        grid = {f"g{axis}": cells for axis, cells in enumerate(self.grid_size)}
        patch = [f"p{axis}" for axis in range(len(grid))]
        pixels = " ".join(map("({} {})".format, grid, patch))
        text = pattern.format(pixels=pixels, grid=" ".join(grid), patch=" ".join(patch))
        return rearrange(tensor, text, **grid)

    def encode(self, images: Tensor, *context: TokenSet) -> Tensor:
        """Features of the right shape, with a context or without."""
        out = self.part(images, *context)
        num_tokens = context[0].shape[1] if context else math.prod(self.grid_size)
        require_shape("the output must be [b n d] =", out, (len(images), num_tokens, self.dim))
        return out


@torch.no_grad()
def _check_full_context(case: _Case) -> None:
    plain, again = case.encode(case.images), case.encode(case.images)
    case.require_close(Law.FULL, "two calls in eval mode must agree", again, plain)
    full = case.encode(case.images, case.everything())
    case.require_close(Law.FULL, "the full context must equal no context", full, plain)


@torch.no_grad()
def _check_hidden_pixels(case: _Case) -> None:
    patches = case.to_patches(case.images)
    noise = 10 * case.noise(patches.shape, patches)
    hidden = ~case.tokens.to_mask().view(*patches.shape[:2], *[1] * (patches.dim() - 2))
    case.require_close(
        Law.LEAK,
        "other pixels in hidden patches changed the output",
        case.encode(case.to_images(torch.where(hidden, noise, patches)), case.tokens),
        case.encode(case.images, case.tokens),
    )


def _check_gradients(case: _Case) -> None:
    """Check that gradients reach all visible patches, no hidden one, and pass no padding."""
    images, tokens = case.images.clone().requires_grad_(), case.tokens
    out = case.encode(images, tokens)
    incoming = case.noise(out.shape, out)
    # Padding is cut off from the graph if it makes no difference which gradient arrives there.
    clean, poisoned = (
        case.gradients(out, incoming.masked_fill(~tokens.valid.unsqueeze(-1), value), images=images)
        for value in (0.0, 1e4)
    )
    at_images = clean.get("the images", torch.zeros_like(images))
    reached = (case.to_patches(at_images) != 0).flatten(2).any(dim=2)
    visible = tokens.to_mask()
    axes, hint = "sample position", "are indices shifted by a class token?"
    found = "the output has a gradient at a hidden patch"
    require_nowhere(Law.LEAK, reached & ~visible, found, axes=axes)
    found = "the output has no gradient at a visible patch"
    require_nowhere(Law.FULL, ~reached & visible, found, axes=axes, hint=hint)
    what = "a gradient that arrives at padding reached"
    case.require_same_gradients(what, poisoned, clean)


@torch.no_grad()
def _check_batch_mates(case: _Case) -> None:
    images, tokens = case.images, case.tokens
    together = case.encode(images, tokens)
    largest = float(together.abs().max())
    for sample in range(len(images)):
        context = single_sample(tokens, sample)
        case.require_close(
            Law.BATCH,
            f"sample {sample} in a padded batch must equal the sample alone",
            together[sample, : context.shape[1]],
            case.encode(images[sample : sample + 1], context)[0],
            largest,
        )
    order = torch.arange(len(images)).roll(1)
    shuffled = case.encode(images[order], tokens[order])
    case.require_close(Law.BATCH, "the batch in another order", shuffled, together[order], largest)


def _check_nothing_visible(case: _Case) -> None:
    for whose, samples in (("one sample", slice(0, 1)), ("every sample", slice(None))):
        context = emptied(case.tokens, samples)
        images = case.images.clone().requires_grad_()
        out = case.encode(images, context)
        cause = f"with {whose} without a visible patch"
        require_finite(Law.PADDING, f"{cause}, the output", out)
        require_padding_is_zero(out, context)
        for name, gradient in case.gradients(out, 2 * out, images=images).items():
            require_finite(Law.PADDING, f"{cause}, the gradient of {name}", gradient)


@torch.no_grad()
def _check_positions(case: _Case) -> None:
    """Compare two neighbouring patches with the same two at the ends of the grid.

    Both their places and their distance change: rotary positions depend on the distance alone.
    Their order does not change, so an encoder that numbers the visible patches anew is found.
    """
    size = math.prod(case.grid_size)
    if size < 3:
        return  # there is no second distance
    nothing = torch.zeros_like(case.to_patches(case.images[:1]))
    patches = case.noise((2, *nothing.shape[2:]), nothing)
    outputs = []
    for places in ([0, 1], [0, size - 1]):
        image = nothing.clone()
        image[0, places] = patches
        image = case.to_images(image)
        idx = torch.tensor([places], device=image.device)
        valid = torch.ones_like(idx, dtype=torch.bool)
        outputs.append(case.encode(image, TokenSet(idx, valid, case.grid_size, padded=False)))
    near, far = outputs
    case.require_positions(
        f"outputs of two patches at positions 0 and 1, and of the same two at 0 and {size - 1},",
        float((near - far).abs().max()),
        float(near.abs().max()),
        "a patch needs the position of its index, not of its place in the list of visible "
        "patches; positions=False for an encoder without positions",
    )


@torch.no_grad()
def _check_cost(case: _Case) -> None:
    everything = case.everything()
    one = TokenSet(everything.idx[:, -1:], everything.valid[:, -1:], case.grid_size, padded=False)
    operations = []
    # The fused transformer layers of torch.nn, used without gradients, count as no operations.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for tokens in (one, everything):
            with FlopCounterMode(display=False) as counter:
                case.encode(case.images, tokens)
            operations.append(counter.get_total_flops())
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    require(
        Law.LEAK,
        everything.num_positions == 1 or operations[0] < operations[1],
        f"one visible patch takes as many operations as all {everything.num_positions} "
        f"({operations[0]:,} and {operations[1]:,})",
        hint="hidden patches are computed: drop them before the first block, since those that stay "
        "in attention leak bias and position; drops_hidden=False if they are masked as keys",
    )
