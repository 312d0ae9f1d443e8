"""`assert_encoder_contract`: the laws of an encoder that takes a context."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from jepakit._checks import as_bool, as_grid_size, as_int, as_number
from jepakit.testing._probe import (
    emptied,
    perturbed_copy,
    ragged_token_sets,
    single_sample,
    trainable_parameters,
)
from jepakit.testing._violation import Law, fail, first_index, require_close, require_finite
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
    or a layer scale of 1e-5 would hide what a block does. The encoder itself is not changed.
    Patches are assumed not to overlap: a stem whose receptive field is larger than its patch
    violates law 4.

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
        ValueError: If there are fewer than 2 images, or they do not divide into the grid's patches.

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
    case = _Case(encoder, images, tokens, dim, generator, tolerance)

    _check_full_context(case)
    _check_shape(encoder(images, tokens), (*tokens.shape, dim))
    _check_padding_is_zero(encoder(images, tokens), tokens)
    _check_hidden_pixels(case)
    _check_gradients(case)
    _check_batch_mates(case)
    _check_nothing_visible(case)
    if positions:
        _check_positions(case)
    if drops_hidden:
        _check_cost(case)


@dataclass(frozen=True)
class _Case:
    encoder: Any
    images: Tensor
    tokens: TokenSet
    dim: int
    generator: torch.Generator
    tolerance: float

    @property
    def grid_size(self) -> tuple[int, ...]:
        return self.tokens.grid_size

    def everything(self) -> TokenSet:
        return TokenSet.full(self.grid_size, (len(self.images),), device=self.images.device)

    def noise_like(self, tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=self.generator).to(tensor)

    def require_close(
        self, law: Law, what: str, actual: Tensor, expected: Tensor, scale: float | None = None
    ) -> None:
        require_close(law, what, actual, expected, self.tolerance, scale=scale)


def _read_interface(encoder: Any, images: Tensor) -> tuple[tuple[int, ...], int]:
    """Grid and width of the encoder; raise unless the images fit the grid."""
    for name in ("grid_size", "embed_dim"):
        if not hasattr(encoder, name):
            fail(Law.INTERFACE, f"an encoder must have {name}; {type(encoder).__name__} has none")
    grid_size = as_grid_size("encoder.grid_size", encoder.grid_size)
    dim = as_int("encoder.embed_dim", encoder.embed_dim, minimum=1)
    if len(images) < 2:
        raise ValueError(f"images {tuple(images.shape)}: must be at least 2, to have batch-mates")
    sides = images.shape[2:]
    if len(sides) != len(grid_size) or any(
        side % cells for side, cells in zip(sides, grid_size, strict=True)
    ):
        raise ValueError(
            f"images {tuple(images.shape)}: must be [b, c, *sides] with sides that are multiples "
            f"of the encoder's grid {grid_size}"
        )
    return grid_size, dim


def _check_shape(out: Any, expected: tuple[int, ...]) -> None:
    if not isinstance(out, Tensor) or tuple(out.shape) != expected:
        found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        fail(Law.INTERFACE, f"the output must be [b n d] = {expected}, got {found}")


def _check_padding_is_zero(out: Tensor, tokens: TokenSet) -> None:
    wrong = (out != 0).any(dim=-1) & ~tokens.valid
    if wrong.any():
        sample, entry = first_index(wrong)
        largest = out[sample, entry].abs().max().item()
        fail(
            Law.PADDING,
            f"the output of padding must be exactly zero, got values up to {largest:.3g}",
            where=f"sample {sample}, entry {entry}",
        )


@torch.no_grad()
def _check_full_context(case: _Case) -> None:
    everything = case.everything()
    plain = case.encoder(case.images)
    _check_shape(plain, (*everything.shape, case.dim))
    case.require_close(
        Law.FULL, "two calls in eval mode must agree", case.encoder(case.images), plain
    )
    full = case.encoder(case.images, everything)
    case.require_close(Law.FULL, "the full context must equal no context", full, plain)


@torch.no_grad()
def _check_hidden_pixels(case: _Case) -> None:
    hidden = _pixel_mask(~case.tokens.to_mask(), case.images, case.grid_size)
    noise = 10 * case.noise_like(case.images)
    case.require_close(
        Law.LEAK,
        "other pixels in hidden patches changed the output",
        case.encoder(torch.where(hidden, noise, case.images), case.tokens),
        case.encoder(case.images, case.tokens),
    )


def _pixel_mask(mask: Tensor, images: Tensor, grid_size: tuple[int, ...]) -> Tensor:
    """Flat masks over the patches as masks over the pixels, `[b, 1, *sides]`."""
    field = mask.view(len(mask), 1, *grid_size)
    for axis, cells in enumerate(grid_size, start=2):
        field = field.repeat_interleave(images.shape[axis] // cells, dim=axis)
    return field


def _check_gradients(case: _Case) -> None:
    """Gradients reach the visible patches, no hidden one, and nothing through padding."""
    images, tokens = case.images.clone().requires_grad_(), case.tokens
    out = case.encoder(images, tokens)
    if not out.requires_grad:
        fail(Law.INTERFACE, "the output carries no gradient")
    incoming = case.noise_like(out)
    inputs = {"the images": images, **trainable_parameters(case.encoder)}
    # Padding is cut off from the graph if it makes no difference which gradient arrives there.
    clean, poisoned = (
        torch.autograd.grad(
            out,
            list(inputs.values()),
            incoming.masked_fill(~tokens.valid.unsqueeze(-1), value),
            retain_graph=True,
            materialize_grads=True,
        )
        for value in (0.0, 1e4)
    )
    reached = _largest_per_patch(clean[0], tokens.grid_size) != 0
    visible = tokens.to_mask()
    if (reached & ~visible).any():
        sample, position = first_index(reached & ~visible)
        fail(
            Law.LEAK,
            "the output has a gradient at a hidden patch",
            where=f"sample {sample}, position {position}",
        )
    if (~reached & visible).any():
        sample, position = first_index(~reached & visible)
        fail(
            Law.FULL,
            "the output has no gradient at a visible patch",
            where=f"sample {sample}, position {position}",
            hint="are indices shifted by a class token?",
        )
    for name, gradient, expected in zip(inputs, poisoned, clean, strict=True):
        what = f"a gradient that arrives at padding reached {name}"
        case.require_close(Law.PADDING, what, gradient, expected)


def _largest_per_patch(values: Tensor, grid_size: tuple[int, ...]) -> Tensor:
    """Largest magnitude in each patch, `[b, N]`."""
    # On a grid (H, W): [b, H h, W w] -> [b, H, h, W, w], and the maximum over h and w.
    shape = [len(values)]
    for cells, side in zip(grid_size, values.shape[2:], strict=True):
        shape += [cells, side // cells]
    pixel_axes = tuple(range(2, len(shape), 2))
    return values.abs().amax(dim=1).reshape(shape).amax(dim=pixel_axes).flatten(1)


@torch.no_grad()
def _check_batch_mates(case: _Case) -> None:
    images, tokens = case.images, case.tokens
    together = case.encoder(images, tokens)
    largest = float(together.abs().max())
    for sample in range(len(images)):
        context = single_sample(tokens, sample)
        case.require_close(
            Law.BATCH,
            f"sample {sample} in a padded batch must equal the sample alone",
            together[sample, : context.shape[1]],
            case.encoder(images[sample : sample + 1], context)[0],
            largest,
        )
    order = torch.arange(len(images)).roll(1)
    shuffled = case.encoder(images[order], tokens[order])
    case.require_close(Law.BATCH, "the batch in another order", shuffled, together[order], largest)


def _check_nothing_visible(case: _Case) -> None:
    for whose, samples in (("one sample", slice(0, 1)), ("every sample", slice(None))):
        context = emptied(case.tokens, samples)
        inputs = {
            "the images": case.images.clone().requires_grad_(),
            **trainable_parameters(case.encoder),
        }
        out = case.encoder(inputs["the images"], context)
        require_finite(Law.PADDING, f"with {whose} without a visible patch, the output", out)
        _check_padding_is_zero(out, context)
        gradients = torch.autograd.grad(
            out.square().sum(), list(inputs.values()), materialize_grads=True
        )
        for name, gradient in zip(inputs, gradients, strict=True):
            what = f"with {whose} without a visible patch, the gradient of {name}"
            require_finite(Law.PADDING, what, gradient)


@torch.no_grad()
def _check_positions(case: _Case) -> None:
    """Compare two neighbouring patches with the same two at the ends of the grid.

    Both their places and their distance change: rotary positions depend on the distance alone.
    Their order does not change, so an encoder that numbers the visible patches anew is found.
    """
    size = math.prod(case.grid_size)
    if size < 3:
        return  # there is no second distance
    sides = [
        side // cells for side, cells in zip(case.images.shape[2:], case.grid_size, strict=True)
    ]
    patches = torch.randn(2, case.images.shape[1], *sides, generator=case.generator)
    outputs = []
    for places in ((0, 1), (0, size - 1)):
        image = torch.zeros_like(case.images[:1])
        for patch, place in zip(patches.to(image), places, strict=True):
            _patch_view(image[0], place, case.grid_size).copy_(patch)
        idx = torch.tensor([places], device=image.device)
        valid = torch.ones_like(idx, dtype=torch.bool)
        outputs.append(case.encoder(image, TokenSet(idx, valid, case.grid_size, padded=False)))
    near, far = outputs
    gap, largest = float((near - far).abs().max()), float(near.abs().max())
    if gap <= case.tolerance * largest:
        fail(
            Law.POSITIONS,
            f"two patches at positions 0 and 1, and the same two at 0 and {size - 1}, give outputs "
            f"that differ by at most {gap:.3g} (largest value {largest:.3g})",
            hint="a patch needs the position of its index, not of its place in the list of visible "
            "patches; positions=False for an encoder without positions",
        )


def _patch_view(image: Tensor, place: int, grid_size: tuple[int, ...]) -> Tensor:
    """The pixels of one patch of `[c, *sides]`, as a view."""
    for axis in range(len(grid_size), 0, -1):
        cells = grid_size[axis - 1]
        side = image.shape[axis] // cells
        image = image.narrow(axis, place % cells * side, side)
        place //= cells
    return image


@torch.no_grad()
def _check_cost(case: _Case) -> None:
    everything = case.everything()
    one = TokenSet(everything.idx[:, -1:], everything.valid[:, -1:], case.grid_size, padded=False)
    operations = []
    for tokens in (one, everything):
        with FlopCounterMode(display=False) as counter:
            case.encoder(case.images, tokens)
        operations.append(counter.get_total_flops())
    if everything.num_positions > 1 and operations[0] >= operations[1]:
        fail(
            Law.LEAK,
            f"one visible patch takes as many operations as all {everything.num_positions} "
            f"({operations[0]:,} and {operations[1]:,})",
            hint="hidden patches are computed: drop them before the first block, since those that "
            "stay in attention leak bias and position; drops_hidden=False if they are masked as "
            "keys",
        )
