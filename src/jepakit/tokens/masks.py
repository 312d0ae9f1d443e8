"""`Masks`: what a sampler returns, one context and some targets for every sample."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.fx._pytree import register_pytree_flatten_spec
from torch.serialization import add_safe_globals
from torch.utils import _pytree as pytree

from jepakit._checks import store_fields, type_name
from jepakit.tokens._arguments import check_token_set
from jepakit.tokens.token_set import TokenSet

__all__ = ["Masks"]


class Masks:
    r"""The context and the targets of a batch, on one grid.

    For sample $b$ the student sees $C_b$ and predicts $T_{b,1}, \dots, T_{b,m}$; samplers promise
    $C_b \cap T_{b,j} = \emptyset$. Immutable and a pytree, as `TokenSet` is.

    Args:
        context: What the student sees, `[batch, n]`.
        targets: What is predicted, `[batch, num_targets, n]`.

    Raises:
        ValueError: If the two do not share grid and batch size, or have other axes.

    Example:
        >>> import jepakit
        >>> masks = jepakit.RandomMask((4, 4), target_ratio=0.75)(2)
        >>> masks.context.shape, masks.targets.shape
        (torch.Size([2, 4]), torch.Size([2, 1, 12]))
        >>> len(masks), masks[:1].grid_size
        (2, (4, 4))
    """

    context: TokenSet
    targets: TokenSet

    def __init__(self, context: TokenSet, targets: TokenSet) -> None:
        check_token_set("context", context)
        check_token_set("targets", targets)
        # Without a batch axis after `masks[i]`.
        if context.idx.dim() not in (1, 2) or targets.idx.dim() != context.idx.dim() + 1:
            raise ValueError(
                f"context {tuple(context.shape)} and targets {tuple(targets.shape)}: "
                "must be [batch, n] and [batch, num_targets, n]"
            )
        if context.grid_size != targets.grid_size:
            raise ValueError(
                f"context is on the grid {context.grid_size}, targets on "
                f"{targets.grid_size}: must be on one grid"
            )
        if context.shape[:-1] != targets.shape[:-2]:
            raise ValueError(
                f"context has batch size {context.shape[0]}, targets {targets.shape[0]}: "
                "must be equal"
            )
        store_fields(self, context=context, targets=targets)

    @classmethod
    def cat(cls, parts: Sequence["Masks"]) -> "Masks":
        """Join `parts` on one grid, with equally many targets, along the batch.

        Contexts and targets are padded to the longest.
        """
        if not isinstance(parts, Sequence):
            raise TypeError(f"parts: must be a sequence of Masks, got {type_name(parts)}")
        for number, part in enumerate(parts):
            if not isinstance(part, Masks):
                raise TypeError(f"parts[{number}]: must be Masks, got {type_name(part)}")
        if len(parts) == 0:
            raise ValueError("parts=[]: must hold at least one Masks")
        return cls(
            TokenSet.cat([part.context for part in parts]),
            TokenSet.cat([part.targets for part in parts]),
        )

    @property
    def grid_size(self) -> tuple[int, ...]:
        """The grid of context and targets."""
        return self.context.grid_size

    def coarsen(self, num_halvings: int = 1) -> "Masks":
        """Context and targets on a grid halved `num_halvings` times, as `TokenSet.coarsen` does it.

        Unless blocks are aligned to the coarse cells, as `NestedMask` draws them, a cell
        on a border is of context and target at once.
        """
        return Masks(self.context.coarsen(num_halvings), self.targets.coarsen(num_halvings))

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> "Masks":
        """The same masks on another `device`; `non_blocking` as in `torch.Tensor.to`."""
        return Masks(
            self.context.to(device, non_blocking=non_blocking),
            self.targets.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> "Masks":
        """The same masks in page-locked memory; `DataLoader(pin_memory=True)` calls this."""
        return Masks(self.context.pin_memory(), self.targets.pin_memory())

    def __len__(self) -> int:
        """Batch size."""
        return len(self.context)

    def __iter__(self) -> Iterator["Masks"]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> "Masks":
        """Index the batch by an int, a slice, or a vector; an int `index` drops the batch axis."""
        if isinstance(index, tuple):
            raise TypeError(
                f"masks[{index!r}]: must be one index, of the batch; index masks.targets for more"
            )
        return Masks(self.context[index], self.targets[index])

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name}: Masks are immutable; build others")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{name}: Masks are immutable")

    def __repr__(self) -> str:
        return f"Masks(context={self.context!r}, targets={self.targets!r})"


def _flatten(masks: Masks) -> tuple[list[Any], None]:
    return [masks.context, masks.targets], None


def _unflatten(children: Any, _: None) -> Masks:
    masks = object.__new__(Masks)
    context, targets = children
    store_fields(masks, context=context, targets=targets)
    return masks


def _flatten_with_keys(masks: Masks) -> tuple[list[tuple[Any, Any]], None]:
    keys = [pytree.GetAttrKey("context"), pytree.GetAttrKey("targets")]
    return list(zip(keys, [masks.context, masks.targets], strict=True)), None


pytree.register_pytree_node(
    Masks,
    _flatten,
    _unflatten,
    serialized_type_name="jepakit.tokens.Masks",
    flatten_with_keys_fn=_flatten_with_keys,
)
register_pytree_flatten_spec(Masks, lambda masks, _: [masks.context, masks.targets])
add_safe_globals([Masks])
