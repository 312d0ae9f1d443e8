"""What a sampler draws, as the contract handles it."""

from typing import Any

import torch

from jepakit.testing.breach import Law, fail
from jepakit.tokens import Masks

__all__: list[str] = []


def generator_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn_by(sampler: Any, batch_size: int, seed: int) -> Any:
    return sampler(batch_size, generator=generator_of(seed))


def members_of(drawn: Any) -> list[Masks]:
    members = drawn if isinstance(drawn, list) else [drawn]
    if not members or not all(isinstance(masks, Masks) for masks in members):
        kinds = ", ".join(sorted({type(masks).__name__ for masks in members})) or "an empty list"
        fail(Law.INTERFACE, f"a sampler must return Masks or a list of Masks, got {kinds}")
    return list(members)


def same_masks(one: Any, other: Any) -> bool:
    ours, theirs = members_of(one), members_of(other)
    return len(ours) == len(theirs) and all(
        a.grid_size == b.grid_size and torch.equal(a.idx, b.idx) and torch.equal(a.valid, b.valid)
        for mine, yours in zip(ours, theirs, strict=True)
        for a, b in ((mine.context, yours.context), (mine.targets, yours.targets))
    )
