"""`masks_from_indices`: masks from bare index tensors."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from jepakit._checks import as_grid_size, type_name
from jepakit.tokens import Masks, TokenSet
from jepakit.tokens._grid import mask_of_indices

__all__ = ["masks_from_indices"]


def masks_from_indices(
    context: Int[Tensor, "b n"], targets: Sequence[Int[Tensor, "b _"]], grid_size: Sequence[int]
) -> Masks:
    """Masks from bare index tensors, as other libraries' samplers and collators return them.

    As with `TokenSet.from_indices`, indices may come in any order, and padding cannot be
    recognised among them.

    Args:
        context: Positions that the student sees.
        targets: Positions of each target block, one tensor for each; blocks may differ in length.
        grid_size: `(L,)`, `(H, W)` or `(T, H, W)` in patches; indices count row-major.

    Raises:
        ValueError: If a tensor is not `[b, n]`, batch sizes differ, or an index is off the grid.

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
    context_mask, *target_masks = [mask_of_indices(name, idx, grid) for name, idx in named.items()]
    for name, idx in named.items():
        if idx.dim() != 2:
            raise ValueError(f"{name} {tuple(idx.shape)}: must be [b, n], a row for each sample")
        if len(idx) != len(context):
            raise ValueError(
                f"{name} {tuple(idx.shape)}: must be for the {len(context)} samples of the context"
            )
    return Masks(
        TokenSet.from_mask(context_mask, grid),
        TokenSet.from_mask(torch.stack(target_masks, dim=1), grid),
    )
