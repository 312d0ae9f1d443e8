"""`assert_set_contract`: the laws of a module over ragged sets without an order."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepakit._checks import as_bool, as_int, as_number
from jepakit.testing._cases import Case, perturbed_copy
from jepakit.testing._violation import Law, require, require_finite, require_nowhere

__all__ = ["assert_set_contract"]


def assert_set_contract(
    module: Callable[..., Tensor],
    in_dim: int,
    *,
    per_entry: bool = False,
    batch_size: int = 5,
    set_size: int = 6,
    tolerance: float = 1e-5,
    seed: int = 0,
) -> None:
    r"""Raise unless a module over ragged sets follows laws 5 and 6 and knows no order.

    - Order: entries and their `valid` in another order give the same vector; with `per_entry`, the
      same features in that order.
    - Law 5: the output of a set is the same alone, without its padding, in any batch, and with more
      padding in front, between or behind.
    - Law 6: values at padding affect neither value nor gradient, and get none, for any pattern of
      `valid`; every valid entry gets a gradient. A set without an entry, also of a batch that has
      room for none, comes out as exact zeros without NaN. With `per_entry`, so does padding.

    The test runs on a copy with perturbed parameters (normal noise, std 0.02), so that
    zero-initialised layers do not hide the rest.

    Args:
        module: Called `(features [b n in_dim], valid [b n])`; gives one output `[b ...]` for a set,
            such as a vector `[b d]`.
        in_dim: Width of an entry.
        per_entry: True for a module that gives features of every entry, `[b n d]`.
        batch_size: Number of sets; at least 2.
        set_size: Number of entries of a set, padding included; at least 3.
        tolerance: Largest allowed difference, as a fraction of the largest output.
        seed: For the sets and the perturbed parameters.

    Raises:
        AssertionError: Names the violated law, what was found, and where.

    Example:
        >>> from jepakit.nn import AttentionPool
        >>> from jepakit.testing import assert_set_contract
        >>> assert_set_contract(AttentionPool(16), 16)
        >>> assert_set_contract(lambda x, valid: (x * valid[..., None]).mean(dim=1), 16)
        Traceback (most recent call last):
        ...
        AssertionError: law 5, batch invariance: set 0 alone, without its padding, ...
    """
    in_dim = as_int("in_dim", in_dim, minimum=1)
    as_bool("per_entry", per_entry)
    batch_size = as_int("batch_size", batch_size, minimum=2)
    set_size = as_int("set_size", set_size, minimum=3)
    tolerance = as_number("tolerance", tolerance, positive=True)
    generator = torch.Generator().manual_seed(as_int("seed", seed))
    module = perturbed_copy(module, generator)
    parameters = list(module.parameters()) if isinstance(module, nn.Module) else []
    like = parameters[0].detach() if parameters else torch.empty(0)
    valid = torch.rand(batch_size, set_size, generator=generator) < 0.5
    # The only entry of the first set is its last one, behind padding; the second set is full.
    valid[0], valid[1] = torch.arange(set_size) == set_size - 1, True
    valid[:, 0] |= ~valid.any(dim=1)
    features = torch.randn(batch_size, set_size, in_dim, generator=generator).to(like)
    case = _Case(module, generator, tolerance, features, valid.to(like.device), per_entry)

    _check_order(case)
    _check_batch_mates(case)
    _check_padding(case)
    _check_empty_sets(case)


@dataclass(frozen=True)
class _Case(Case):
    features: Tensor
    valid: Tensor
    per_entry: bool

    def encode(self, features: Tensor, valid: Tensor) -> Tensor:
        """The output, with the axes that it must have."""
        out = self.part(features, valid)
        axes = 2 if self.per_entry else 1
        expected = tuple(features.shape[:axes])
        found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        require(
            Law.INTERFACE,
            isinstance(out, Tensor) and out.dim() > axes and found[:axes] == expected,
            f"the output must be {'[b n d]' if self.per_entry else '[b ...]'} with "
            f"{expected} in front, got {found}",
        )
        if self.per_entry:
            require_nowhere(
                Law.PADDING,
                (out != 0).flatten(2).any(dim=-1) & ~valid,
                "the output of padding must be exactly zero",
                axes="set entry",
            )
        return out


@torch.no_grad()
def _check_order(case: _Case) -> None:
    out, again = (case.encode(case.features, case.valid) for _ in range(2))
    require_finite(Law.PADDING, "the output", out)
    case.require_close(Law.BATCH, "two calls in eval mode must agree", again, out)
    shuffled = torch.rand(case.valid.shape, generator=case.generator).argsort(dim=1)
    reverse = torch.arange(case.valid.shape[1] - 1, -1, -1).expand_as(shuffled)
    for name, order in (("another order", shuffled), ("reverse order", reverse)):
        order = order.to(out.device)
        features = case.features.gather(1, order[..., None].expand_as(case.features))
        moved = case.encode(features, case.valid.gather(1, order))
        expected = out
        if case.per_entry:
            expected = out.gather(1, order[..., None].expand_as(out))
        case.require_close(Law.SET, f"the output of the entries in {name}", moved, expected)


@torch.no_grad()
def _check_batch_mates(case: _Case) -> None:
    together = case.encode(case.features, case.valid)
    largest = float(together.abs().max())
    for number, (features, valid) in enumerate(zip(case.features, case.valid, strict=True)):
        alone = case.encode(features[valid][None], valid[valid][None])[0]
        expected = together[number][valid] if case.per_entry else together[number]
        what = f"set {number} alone, without its padding, must equal the set in the batch"
        case.require_close(Law.BATCH, what, alone, expected, largest)
    for where, room in (("in front", (2, 0)), ("behind", (0, 3))):
        features = F.pad(case.features, (0, 0, *room), value=1.0)
        more = case.encode(features, F.pad(case.valid, room))
        if case.per_entry:
            more = more[:, room[0] : room[0] + case.valid.shape[1]]
        what = f"the output with more padding {where}"
        case.require_close(Law.BATCH, what, more, together, largest)


def _check_padding(case: _Case) -> None:
    gone = ~case.valid[..., None]
    found = []
    incoming = None
    for filler in (0.0, 1e4):  # large enough to show in any output that it reaches
        features = case.features.masked_fill(gone, filler).requires_grad_()
        out = case.encode(features, case.valid)
        if incoming is None:
            incoming = case.noise(out.shape, out)
        found.append((out.detach(), case.gradients(out, incoming, features=features)))
    (expected, clean), (out, poisoned) = found
    case.require_close(Law.PADDING, "features at padding changed the output", out, expected)
    case.require_same_gradients("features at padding changed the gradient of", poisoned, clean)
    at_features = poisoned.get("the features", torch.zeros_like(case.features))
    used = (at_features != 0).any(dim=-1)
    axes = "set entry"
    require_nowhere(Law.PADDING, used & ~case.valid, "padding gets a gradient", axes=axes)
    found_none = "a valid entry gets no gradient"
    require_nowhere(Law.LEARNS, ~used & case.valid, found_none, axes=axes)


def _check_empty_sets(case: _Case) -> None:
    size = case.valid.shape[1]
    for what, empty, room in (
        ("one set without an entry", slice(0, 1), size),
        ("every set without an entry", slice(None), size),
        ("room for no entry", slice(None), 0),
    ):
        valid = case.valid[:, :room].clone()
        valid[empty] = False
        features = case.features[:, :room].clone().requires_grad_()
        out = case.encode(features, valid)
        require_finite(Law.PADDING, f"with {what}, the output", out)
        flags = (out[empty] != 0).flatten(1).any(dim=1)
        found = f"with {what}, the output of an empty set must be exactly zero"
        require_nowhere(Law.PADDING, flags, found, axes="set")
        if out.requires_grad:
            for name, gradient in case.gradients(out, 2 * out, features=features).items():
                require_finite(Law.PADDING, f"with {what}, the gradient of {name}", gradient)
