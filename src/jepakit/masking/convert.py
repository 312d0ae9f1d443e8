"""`masks_from_indices`: masks from bare index tensors."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from jepakit._checks import as_grid_size, check_tensor, type_name
from jepakit.tokens import Masks, TokenSet

__all__ = ["masks_from_indices"]


def masks_from_indices(
    context: Int[Tensor, "b n"],
    targets: Sequence[Int[Tensor, "b _"]],
    grid_size: Sequence[int],
) -> Masks:
    """Masks from bare index tensors, as other libraries' samplers and collators return them.

    Padding cannot be recognised among bare indices: where a sampler pads, build its masks with
    `TokenSet(idx, valid, grid_size)`.

    Args:
        context: Positions that the student sees, in any order, signed integers; an index that is
            listed twice counts once.
        targets: Positions of each target block, one tensor for each; blocks may differ in length.
        grid_size: `(L,)`, `(H, W)` or `(T, H, W)` in patches; indices count row-major.

    Raises:
        TypeError: If a tensor does not hold signed integers (for bool masks, see
            `TokenSet.from_mask`).
        ValueError: If there is no target, a tensor is not `[b, n]`, batch sizes differ, or an index
            is off the grid.

    Example:
        >>> import torch
        >>> from jepakit.masking import masks_from_indices
        >>> context, target = torch.tensor([[2, 0, 1]]), torch.tensor([[8, 9]])
        >>> masks = masks_from_indices(context, [target, target + 4], (4, 4))
        >>> masks.context.idx, masks.targets.idx
        (tensor([[0, 1, 2]]), tensor([[[ 8,  9],
                 [12, 13]]]))
    """
    grid = as_grid_size("grid_size", grid_size)
    if not isinstance(targets, Sequence):
        hint = "; for [b, m, n], [*targets.unbind(1)]" if isinstance(targets, Tensor) else ""
        raise TypeError(
            f"targets: must be a sequence of index tensors, got {type_name(targets)}{hint}"
        )
    if len(targets) == 0:
        raise ValueError("targets=[]: must hold at least one index tensor")
    named = {"context": context, **{f"targets[{k}]": idx for k, idx in enumerate(targets)}}
    for name, idx in named.items():
        check_tensor(name, idx)
        if idx.dim() != 2:
            raise ValueError(f"{name} {tuple(idx.shape)}: must be [b, n], a row for each sample")
        if len(idx) != len(context):
            raise ValueError(
                f"{name} {tuple(idx.shape)}: must be for the {len(context)} samples of the context"
            )
    context_set, *target_sets = (_token_set(name, idx, grid) for name, idx in named.items())
    target_masks = torch.stack([tokens.to_mask() for tokens in target_sets], dim=1)
    return Masks(context_set, TokenSet.from_mask(target_masks, grid))


def _token_set(name: str, idx: Tensor, grid_size: tuple[int, ...]) -> TokenSet:
    """`TokenSet.from_indices`, whose errors begin with `name` instead of "indices"."""
    try:
        return TokenSet.from_indices(idx, grid_size)
    except (TypeError, ValueError) as error:
        raise type(error)(name + str(error).removeprefix("indices")) from None
