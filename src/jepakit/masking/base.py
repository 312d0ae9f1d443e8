"""Protocol, base classes and error of the mask samplers."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from numbers import Integral
from typing import Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils import _pytree as pytree

from jepakit._checks import as_int, check_device, check_floating, check_tensor, type_name
from jepakit.masking._engine.block_sizes import round_half_up
from jepakit.masking._engine.random_numbers import Device, copy_to, draw_uniforms
from jepakit.tokens import Masks, TokenSet

__all__ = ["InfeasibleMaskError", "MaskSampler"]

M = TypeVar("M")  # `Masks`, or a list of them
M_co = TypeVar("M_co", covariant=True)


class InfeasibleMaskError(ValueError):
    """Error for masks that cannot exist; its text has the arithmetic and what to change.

    Raised when a sampler is built or, for a sample that holds too few `valid` positions, when it is
    called; never by chance.

    Example:
        >>> from jepakit import InfeasibleMaskError, MultiBlockMask
        >>> try:
        ...     MultiBlockMask((14, 14), min_context_coverage=0.85)
        ... except InfeasibleMaskError as error:
        ...     print(str(error).replace(". ", ".\\n"))
        MultiBlockMask on the grid (14, 14): min_context_coverage=0.85 needs 167 context tokens, \
and 167 + 42 (largest target block, 7 x 6) = 209 exceeds 196 (largest context block).
        Change one of: target_scale=(0.1262, 0.1262); min_context_coverage=0.7857
    """


@runtime_checkable
class MaskSampler(Protocol[M_co]):
    """Any callable with this signature that draws masks.

    It returns `Masks`, or a list of them where an image has several contexts. jepakit's samplers
    also take `valid`, the positions that hold data.
    """

    def __call__(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        device: Device = None,
    ) -> M_co:
        """Draw masks for `batch_size` samples on a `device`, as a function of the `generator`."""
        ...


class UniformSampler(ABC, Generic[M_co]):
    """Base class of jepakit's samplers: masks are a function of a table of uniforms.

    The table has one row of `num_uniforms` numbers in [0, 1) for each sample. A subclass turns it
    into masks in `_draw`.
    """

    grid_size: tuple[int, ...]

    @property
    def _columns(self) -> list[int]:
        """Columns of the table, by their use in `_draw`."""
        return []

    @cached_property
    def num_uniforms(self) -> int:
        """Random numbers that one sample takes."""
        return sum(self._columns)

    @property
    def min_context_tokens(self) -> int:
        """Smallest number of context tokens that a sample can have."""
        return 1

    @property
    def per_sample(self) -> bool:
        """True if a sample's masks depend on its own random numbers alone."""
        return True

    @property
    def _shared_columns(self) -> list[int]:
        """Columns of the table, of sizes that a batch shares, whose first row counts for all.

        What else a sample's masks depend on are the other columns of its own row, and the lengths
        of its batch-mates where contexts are trimmed to the shortest.
        """
        return []

    @abstractmethod
    def _draw(self, uniforms: Float[Tensor, "b k"], valid: Bool[Tensor, "b N"] | None) -> M_co:
        """Masks from a table, on its device; inside of `valid`, if given."""

    def _untrimmed(self, uniforms: Float[Tensor, "b k"]) -> M_co:
        """The same draw before contexts are shortened; `audit_masks` compares the two.

        To be overridden where they are.
        """
        return self._draw(uniforms, None)

    @abstractmethod
    def _check_feasible_in(self, valid: Bool[Tensor, "b N"]) -> None:
        """Raise if a sample of `valid` holds too little for its masks, naming it."""

    def __call__(
        self,
        batch_size: int,
        *,
        valid: Bool[Tensor, "b N"] | None = None,
        generator: torch.Generator | None = None,
        device: Device = None,
    ) -> M_co:
        """Draw masks for a batch.

        Args:
            batch_size: Number of samples.
            valid: True at the positions that hold data, flat over the grid; all if None. Context
                and targets lie inside. Ratios, scales and the promised context count what is there,
                sample by sample. Sets of a fixed length are padded to the one that whole grids
                give, others to the longest of the batch (elsewhere than on the CPU to the longest
                possible). On the CPU it is checked, on another device it is not, so that nothing
                is synchronised.
            generator: A CPU generator; torch's global one if None.
            device: Device of the masks, which do not depend on it; that of `valid` if None, else
                the CPU. They are computed on the CPU, or where `valid` is.

        Raises:
            InfeasibleMaskError: If a sample holds too few valid positions for its masks.
        """
        uniforms = draw_uniforms(batch_size, self.num_uniforms, generator=generator)
        return self._masks(uniforms, valid, device)

    def from_uniforms(
        self,
        uniforms: Float[Tensor, "b k"],
        *,
        valid: Bool[Tensor, "b N"] | None = None,
        device: torch.device | str | int | None = None,
    ) -> M_co:
        """Compute masks from a table of random numbers.

        Args:
            uniforms: For each sample `num_uniforms` in [0, 1), on the CPU.
            valid: As in a call of the sampler.
            device: As in a call of the sampler.
        """
        check_floating("uniforms", uniforms)
        if uniforms.dim() != 2 or uniforms.shape[1] != self.num_uniforms or len(uniforms) == 0:
            raise ValueError(
                f"uniforms {tuple(uniforms.shape)}: must be [batch, {self.num_uniforms}], "
                "with a batch of at least 1"
            )
        if uniforms.device.type != "cpu":
            raise ValueError(f"uniforms on {uniforms.device}: must be on the CPU")
        # For the number 1 a causal mask would draw the step after the last, a target of nothing.
        if not ((uniforms >= 0) & (uniforms < 1)).all():
            raise ValueError("uniforms: must lie in [0, 1)")
        return self._masks(uniforms, valid, device)

    def _masks(
        self, uniforms: Float[Tensor, "b k"], valid: Bool[Tensor, "b N"] | None, device: Device
    ) -> M_co:
        if device is not None:
            check_device("device", device)
        if valid is None:
            return copy_masks(self._draw(uniforms, None), device)
        size = math.prod(self.grid_size)
        check_tensor("valid", valid, torch.bool)
        if valid.shape != (len(uniforms), size):
            raise ValueError(
                f"valid {tuple(valid.shape)}: must be flat over the grid {self.grid_size}, "
                f"[{len(uniforms)}, {size}]"
            )
        if valid.device.type != "cpu":
            if device is not None and torch.device(device).type != valid.device.type:
                raise ValueError(f"device={device!r}: must be that of valid, {valid.device}")
            return self._draw(copy_to(uniforms, valid.device), valid)
        self._check_feasible_in(valid)
        return copy_masks(self._draw(uniforms, valid), device)


class MaskTransform(UniformSampler[Masks]):
    """Base class of samplers that change the masks of one other sampler."""

    sampler: UniformSampler[Masks]

    @property
    def _columns(self) -> list[int]:
        return [self.sampler.num_uniforms]

    @property
    def per_sample(self) -> bool:
        """As in `sampler`."""
        return self.sampler.per_sample

    @property
    def _shared_columns(self) -> list[int]:
        return self.sampler._shared_columns

    @abstractmethod
    def _transform(self, masks: Masks, valid: Bool[Tensor, "b N"] | None) -> Masks:
        """The masks of this sampler from those of `sampler`."""

    def _inner_valid(self, valid: Bool[Tensor, "b N"]) -> Bool[Tensor, "b M"]:
        """The positions with data on the grid of `sampler`."""
        return valid

    def _draw(self, uniforms: Float[Tensor, "b k"], valid: Bool[Tensor, "b N"] | None) -> Masks:
        inner = None if valid is None else self._inner_valid(valid)
        return self._transform(self.sampler._draw(uniforms, inner), valid)

    def _untrimmed(self, uniforms: Float[Tensor, "b k"]) -> Masks:
        return self._transform(self.sampler._untrimmed(uniforms), None)

    def _check_feasible_in(self, valid: Bool[Tensor, "b N"]) -> None:
        self.sampler._check_feasible_in(self._inner_valid(valid))


def check_samples(feasible: Bool[Tensor, " b"], explain: Callable[[int], str]) -> None:
    """Raise for the first sample that is not feasible, with the number and its explanation."""
    if feasible.all():
        return
    sample = int((~feasible).int().argmax())
    raise InfeasibleMaskError(f"valid[{sample}]: {explain(sample)}")


def copy_masks(masks: M, device: Device) -> M:
    """Masks, or a list of them, from the CPU on a device, without a host synchronisation."""

    def copy(tokens: TokenSet) -> TokenSet:
        idx = copy_to(tokens.idx, device)
        # Where nothing is padded there is nothing to copy.
        valid = (
            copy_to(tokens.valid, device)
            if tokens.padded
            else idx.new_ones((), dtype=torch.bool).expand_as(idx)
        )
        return tokens._with_tensors(idx, valid)

    if device is None or torch.device(device).type == "cpu":
        return masks
    copied: M = pytree.tree_map(copy, masks, is_leaf=lambda part: isinstance(part, TokenSet))
    return copied


def check_sampler(name: str, value: object) -> None:
    """Raise unless `value` is one of jepakit's samplers and gives one context for an image."""
    if not isinstance(value, UniformSampler):
        raise TypeError(
            f"{name}={value!r}: must be one of jepakit's samplers, got {type_name(value)}"
        )
    if hasattr(value, "samplers"):
        raise TypeError(
            f"{name}=MultiContextMask(...): must give one context for each image; combine the "
            "results instead, as MultiContextMask((Outer(a), Outer(b)))"
        )


def positions_of_ratio(ratio: float, grid_size: tuple[int, ...]) -> int:
    """Positions that a ratio of the grid rounds to; at least 1, and at least 1 is left over."""
    size = math.prod(grid_size)
    if size < 2:
        raise InfeasibleMaskError(
            f"grid_size={grid_size}: one position cannot be both context and target. "
            "Change: grid_size to at least 2 positions"
        )
    return min(max(1, round_half_up(ratio * size)), size - 1)


def positions_of_ratio_in(ratio: float, num_valid: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
    """`positions_of_ratio` for samples of `num_valid` positions, at least 2."""
    positions = torch.floor(ratio * num_valid.double() + 0.5).long()
    return positions.clamp_min(1).minimum(num_valid - 1)


def check_two_valid(valid: Bool[Tensor, "b N"]) -> None:
    """Raise unless each sample has a position for its context and one for its target."""
    counts = valid.sum(dim=1)
    check_samples(
        counts >= 2,
        lambda sample: (
            f"{int(counts[sample])} valid position(s): must be at least 2, one for the context and "
            "one for the target"
        ),
    )


def promised_tokens(sampler: object, num_members: int) -> list[int]:
    """Context tokens that a sampler promises for each of the `Masks` that one call returns.

    A sampler of the user's own may have `min_context_tokens`, else it is 1, and an int
    `context_length`, which counts where it is less. jepakit's samplers have both in
    `min_context_tokens`.
    """

    members = getattr(sampler, "samplers", ())
    if not isinstance(members, tuple) or len(members) != num_members:
        members = (sampler,) * num_members
    return [_promised_tokens_of_one(member) for member in members]


def _promised_tokens_of_one(sampler: object) -> int:
    promise = getattr(sampler, "min_context_tokens", 1)
    tokens = as_int("sampler.min_context_tokens", promise, minimum=0)
    length = getattr(sampler, "context_length", None)
    own = not isinstance(sampler, UniformSampler)
    return min(tokens, int(length)) if own and isinstance(length, Integral) else tokens
