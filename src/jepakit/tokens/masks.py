"""`Masks`: what a sampler returns, one context and some targets for every sample."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx._pytree import register_pytree_flatten_spec
from torch.utils import _pytree as pytree

from jepakit.tokens.kind import check_token_set
from jepakit.tokens.token_set import TokenSet

__all__ = ["Masks"]


@dataclass(frozen=True, eq=False)
class Masks:
    """The context and the targets of a batch, on one grid.

    For sample $b$ the student sees $C_b$ and predicts $T_{b,1}, \\dots, T_{b,m}$; samplers promise
    $C_b \\cap T_{b,j} = \\emptyset$.

    Args:
        context: What the student sees, `[batch, n]`.
        targets: What is predicted, `[batch, num_targets, n]`.

    Raises:
        TypeError: If one of the two is not a `TokenSet`.
        ValueError: If the two do not share grid and batch size, or have other axes.

    Example:
        >>> import jepakit
        >>> masks = jepakit.RandomMask((4, 4), target_ratio=0.75)(2)
        >>> masks.context.shape, masks.targets.shape
        (torch.Size([2, 4]), torch.Size([2, 1, 12]))

    Source:
        jepakit's own.
    """

    context: TokenSet
    targets: TokenSet

    def __post_init__(self) -> None:
        check_token_set("context", self.context)
        check_token_set("targets", self.targets)
        if self.context.idx.dim() != 2 or self.targets.idx.dim() != 3:
            raise ValueError(
                f"context {tuple(self.context.shape)} and targets {tuple(self.targets.shape)}: "
                "must be [batch, n] and [batch, num_targets, n]"
            )
        if self.context.grid_size != self.targets.grid_size:
            raise ValueError(
                f"context is on the grid {self.context.grid_size}, targets on "
                f"{self.targets.grid_size}: must be on one grid"
            )
        if self.context.shape[0] != self.targets.shape[0]:
            raise ValueError(
                f"context has batch size {self.context.shape[0]}, targets {self.targets.shape[0]}: "
                "must be equal"
            )

    def coarsen(self, levels: int = 1) -> "Masks":
        """Context and targets on a coarser grid; see `TokenSet.coarsen`.

        Unless blocks are aligned to the coarse cells, as `NestedMultiBlockMask` draws them, a cell
        on a border is of context and target at once.

        Args:
            levels: How often to halve the grid.
        """
        return Masks(self.context.coarsen(levels), self.targets.coarsen(levels))

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Masks":
        """The same masks on another device.

        Args:
            device: Where to.
            non_blocking: As in `torch.Tensor.to`.

        Raises:
            TypeError: If `device` is something else, such as a dtype.
        """
        return Masks(
            self.context.to(device, non_blocking=non_blocking),
            self.targets.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> "Masks":
        """The same masks in page-locked memory; `DataLoader(pin_memory=True)` calls this."""
        return Masks(self.context.pin_memory(), self.targets.pin_memory())


def _flatten(masks: Masks) -> tuple[list[Any], None]:
    return [masks.context, masks.targets], None


def _unflatten(children: Any, _: None) -> Masks:
    masks = object.__new__(Masks)
    context, targets = children
    object.__setattr__(masks, "context", context)
    object.__setattr__(masks, "targets", targets)
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
