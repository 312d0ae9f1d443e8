"""`assert_encoder_contract`: what an encoder that is given a context keeps."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from jepakit._checks import check_bool, check_grid_size, check_int, check_number
from jepakit.testing.breach import Law, fail, first_of, require_close
from jepakit.testing.positions import check_positions
from jepakit.testing.probe import alone, moved_copy, ragged_sets, trainable, without
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
    r"""Raise unless an encoder keeps the laws of a context, in eval mode.

    Law 3: $f(x, \text{everything}) = f(x)$, and every visible patch is used. Law 4: with $S$
    visible, $\partial f(x, S) / \partial x_p = 0$ exactly for $p \notin S$, other pixels there
    change nothing, and hidden patches cost nothing. Law 5: a sample gives the same alone, in any
    batch, in any order and with any padding. Law 6: padding comes out as exact zeros and gets no
    gradient; a sample with nothing visible gives no NaN. Beyond them: the same patches in other
    places, at another distance, give another output.

    It probes a copy whose parameters are moved a little (normal, 0.02): zero biases or a layer
    scale of 1e-5 would hide what a block does. The encoder itself is left as it is. Patches are
    taken not to overlap: a stem that sees beyond its patch breaks law 4.

    Args:
        encoder: Called `(images, context=None) -> [b n d]`, with `grid_size` and `embed_dim`.
        images: At least 2, all different, `[b, c, *sides]`; sides are multiples of the grid's.
        tolerance: Largest difference as a fraction of the output's largest value.
        drops_hidden: Expect hidden patches to be left out, so that fewer operations are counted
            for one visible patch than for all. False for an encoder that masks them as keys.
        positions: Expect the output to depend on where patches are. False for an encoder that has
            no positions on purpose.
        seed: Of the sets, the noise and the moved parameters.

    Raises:
        AssertionError: Names the law that is broken, what was seen, and where.
        ValueError: If there are fewer than 2 images, or they do not divide into the grid's patches.

    Example:
        >>> import timm, torch
        >>> from jepakit import MaskedViT
        >>> from jepakit.testing import assert_encoder_contract
        >>> backbone = timm.create_model(
        ...     "vit_tiny_patch16_224", num_classes=0, img_size=64, depth=2)
        >>> assert_encoder_contract(MaskedViT(backbone), torch.randn(4, 3, 64, 64))

    Source:
        jepakit's own.
    """
    check_number("tolerance", tolerance, positive=True)
    check_bool("drops_hidden", drops_hidden)
    check_bool("positions", positions)
    generator = torch.Generator().manual_seed(seed)
    encoder = moved_copy(encoder, generator)
    grid_size, dim = _interface(encoder, images)
    images = images.detach()
    tokens = ragged_sets(grid_size, (len(images),), generator, images.device, extra=2)

    _check_full(encoder, images, grid_size, dim, tolerance)
    _check_shape(encoder(images, tokens), (*tokens.shape, dim))
    _check_padding_is_zero(encoder(images, tokens), tokens)
    _check_leak(encoder, images, tokens, generator, tolerance)
    _check_gradients(encoder, images, tokens, generator, tolerance)
    _check_batch(encoder, images, tokens, generator, tolerance)
    _check_nothing_visible(encoder, images, tokens)
    if positions:
        check_positions(encoder, images, grid_size, generator, tolerance)
    if drops_hidden:
        _check_cost(encoder, images, grid_size)


def _interface(encoder: Any, images: Tensor) -> tuple[tuple[int, ...], int]:
    for name in ("grid_size", "embed_dim"):
        if not hasattr(encoder, name):
            fail(Law.INTERFACE, f"an encoder must have {name}; {type(encoder).__name__} has none")
    grid_size = encoder.grid_size
    check_grid_size("encoder.grid_size", grid_size)
    check_int("encoder.embed_dim", encoder.embed_dim, minimum=1)
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
    return grid_size, encoder.embed_dim


def _check_shape(out: Any, expected: tuple[int, ...]) -> None:
    if not isinstance(out, Tensor) or tuple(out.shape) != expected:
        seen = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        fail(Law.INTERFACE, f"the output must be [b n d] = {expected}, got {seen}")


def _check_padding_is_zero(out: Tensor, tokens: TokenSet) -> None:
    wrong = (out != 0).any(dim=-1) & ~tokens.valid
    if wrong.any():
        sample, slot = first_of(wrong)
        fail(
            Law.PADDING,
            f"slot {slot} of sample {sample} is padding and must come out as exact zeros, got "
            f"values up to {out[sample, slot].abs().max().item():.3g}",
        )


@torch.no_grad()
def _check_full(
    encoder: Any, images: Tensor, grid_size: tuple[int, ...], dim: int, tolerance: float
) -> None:
    everything = TokenSet.full(grid_size, (len(images),), device=images.device)
    plain = encoder(images)
    _check_shape(plain, (*everything.shape, dim))
    require_close(
        Law.FULL, "two calls in eval mode, which must agree", encoder(images), plain, tolerance
    )
    whole = encoder(images, everything)
    require_close(Law.FULL, "everything visible against no context", whole, plain, tolerance)


def _pixels(mask: Tensor, images: Tensor, grid_size: tuple[int, ...]) -> Tensor:
    """Flat masks over the patches as masks over the pixels, `[b, 1, *sides]`."""
    field = mask.view(len(mask), 1, *grid_size)
    for axis, cells in enumerate(grid_size, start=2):
        field = field.repeat_interleave(images.shape[axis] // cells, dim=axis)
    return field


def _per_patch(values: Tensor, grid_size: tuple[int, ...]) -> Tensor:
    """Largest magnitude in each patch, `[b, N]`."""
    shape = [len(values)]
    for cells, side in zip(grid_size, values.shape[2:], strict=True):
        shape += [cells, side // cells]
    within = tuple(range(2, len(shape), 2))
    return values.abs().amax(dim=1).reshape(shape).amax(dim=within).flatten(1)


@torch.no_grad()
def _check_leak(
    encoder: Any, images: Tensor, tokens: TokenSet, generator: torch.Generator, tolerance: float
) -> None:
    hidden = _pixels(~tokens.to_mask(), images, tokens.grid_size)
    noise = 10 * torch.randn(images.shape, generator=generator).to(images)
    require_close(
        Law.LEAK,
        "other pixels where patches are hidden changed the output",
        encoder(torch.where(hidden, noise, images), tokens),
        encoder(images, tokens),
        tolerance,
    )


def _check_gradients(
    encoder: Any, images: Tensor, tokens: TokenSet, generator: torch.Generator, tolerance: float
) -> None:
    images = images.clone().requires_grad_()
    out = encoder(images, tokens)
    if not out.requires_grad:
        fail(Law.INTERFACE, "the output carries no gradient")
    into = torch.randn(out.shape, generator=generator).to(out)
    absent = ~tokens.valid.unsqueeze(-1)
    wanted = {"the images": images, **trainable(encoder)}
    clean, dirty = (
        torch.autograd.grad(
            out,
            list(wanted.values()),
            into.masked_fill(absent, value),
            retain_graph=True,
            materialize_grads=True,
        )
        for value in (0.0, 1e4)
    )
    reached, visible = _per_patch(clean[0], tokens.grid_size) != 0, tokens.to_mask()
    if (reached & ~visible).any():
        sample, position = first_of(reached & ~visible)
        fail(
            Law.LEAK,
            f"the output of sample {sample} has a gradient at patch {position}, which is hidden",
        )
    if (~reached & visible).any():
        sample, position = first_of(~reached & visible)
        fail(
            Law.FULL,
            f"the output of sample {sample} has no gradient at patch {position}, which is visible; "
            "are indices shifted by a class token?",
        )
    for name, ours, expected in zip(wanted, dirty, clean, strict=True):
        what = f"a gradient that arrives at padding reached {name}"
        require_close(Law.PADDING, what, ours, expected, tolerance)


@torch.no_grad()
def _check_batch(
    encoder: Any, images: Tensor, tokens: TokenSet, generator: torch.Generator, tolerance: float
) -> None:
    together = encoder(images, tokens)
    largest = float(together.abs().max())
    for sample in range(len(images)):
        one = alone(tokens, sample)
        require_close(
            Law.BATCH,
            f"sample {sample} in a padded batch against alone",
            together[sample, : one.shape[1]],
            encoder(images[sample : sample + 1], one)[0],
            tolerance,
            scale=largest,
        )
    order = torch.arange(len(images)).roll(1)
    shuffled = encoder(images[order], tokens[order])
    require_close(
        Law.BATCH, "the batch in another order", shuffled, together[order], tolerance, scale=largest
    )


def _check_nothing_visible(encoder: Any, images: Tensor, tokens: TokenSet) -> None:
    one, every = without(tokens, slice(0, 1)), without(tokens, slice(None))
    for who, nothing in (("one sample sees", one), ("every sample sees", every)):
        wanted = {"images": images.clone().requires_grad_(), **trainable(encoder)}
        out = encoder(wanted["images"], nothing)
        if not torch.isfinite(out).all():
            where = first_of(~torch.isfinite(out))
            fail(
                Law.PADDING,
                f"{who} nothing, and the output is {out[where].item()} at {where}",
            )
        _check_padding_is_zero(out, nothing)
        gradients = torch.autograd.grad(
            out.square().sum(), list(wanted.values()), materialize_grads=True
        )
        for name, gradient in zip(wanted, gradients, strict=True):
            if not torch.isfinite(gradient).all():
                fail(Law.PADDING, f"{who} nothing, and the gradient of {name} is not finite")


@torch.no_grad()
def _check_cost(encoder: Any, images: Tensor, grid_size: tuple[int, ...]) -> None:
    everything = TokenSet.full(grid_size, (len(images),), device=images.device)
    one = TokenSet(everything.idx[:, -1:], everything.valid[:, -1:], grid_size, padded=False)
    costs = []
    for tokens in (one, everything):
        with FlopCounterMode(display=False) as counter:
            encoder(images, tokens)
        costs.append(counter.get_total_flops())
    if everything.num_positions > 1 and costs[0] >= costs[1]:
        fail(
            Law.LEAK,
            f"one visible patch takes as many operations as all {everything.num_positions} "
            f"({costs[0]:,} against {costs[1]:,}): hidden patches are computed, and what stays in "
            "attention leaks bias and position. Drop them before the first block, or pass "
            "drops_hidden=False if they are masked as keys",
        )
