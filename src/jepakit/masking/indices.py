"""`masks_from_indices`: bare index tensors, as other people's samplers return them."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from jepakit._checks import check_grid_size, check_tensor, type_name
from jepakit.tokens import Masks, TokenSet

__all__ = ["masks_from_indices"]


def masks_from_indices(
    context: Int[Tensor, "b n"],
    targets: Sequence[Int[Tensor, "b _"]],
    grid_size: tuple[int, ...],
) -> Masks:
    """Masks from bare index tensors, as other people's samplers and collators return them.

    An index that is listed twice counts once. Indices that only pad cannot be told from members
    here; where a sampler pads, build its masks with `TokenSet` and say which entries are valid.

    Args:
        context: Positions that the student sees, in any order; signed integers.
        targets: For each target block its positions, in a list or tuple; blocks may differ in
            length.
        grid_size: `(L,)`, `(H, W)` or `(T, H, W)` in patches; indices count row-major.

    Raises:
        TypeError: If an argument is no tensor of signed integers (for masks, `TokenSet.from_mask`).
        ValueError: If there is no target, a tensor is not `[b, n]`, batch sizes differ, or an index
            lies off the grid.

    Example:
        A collator in I-JEPA's style returns the batch, one index tensor for each context and one
        for each target:

        >>> import torch
        >>> from jepakit.masking import audit_masks, masks_from_indices
        >>> def collate(samples):
        ...     n = len(samples)
        ...     seen, hidden = torch.arange(6).expand(n, -1), torch.tensor([8, 9]).expand(n, -1)
        ...     return torch.stack(samples), [seen], [hidden, hidden + 4]
        >>> def sampler(batch_size, *, generator=None):
        ...     _, contexts, targets = collate([torch.zeros(1)] * batch_size)
        ...     return masks_from_indices(contexts[0], targets, (4, 4))
        >>> audit_masks(sampler, batches=2).context_frequency.view(4, 4)
        tensor([[1., 1., 1., 1.],
                [1., 1., 0., 0.],
                [0., 0., 0., 0.],
                [0., 0., 0., 0.]])

    Source:
        jepakit's own.
    """
    check_grid_size("grid_size", grid_size)
    if not isinstance(targets, list | tuple):
        hint = "; for [b, m, n], [*targets.unbind(1)]" if isinstance(targets, Tensor) else ""
        raise TypeError(
            f"targets: must be a list or tuple of index tensors, got {type_name(targets)}{hint}"
        )
    if len(targets) == 0:
        raise ValueError("targets=[]: must hold at least one index tensor")
    named = {"context": context, **{f"targets[{k}]": idx for k, idx in enumerate(targets)}}
    for name, idx in named.items():
        _check_indices(name, idx)
        if len(idx) != len(context):
            raise ValueError(
                f"{name} {tuple(idx.shape)}: must be for the {len(context)} samples of the context"
            )
    sets = [_to_set(f"targets[{k}]", idx, grid_size) for k, idx in enumerate(targets)]
    return Masks(
        TokenSet.from_mask(_to_set("context", context, grid_size), grid_size),
        TokenSet.from_mask(torch.stack(sets, dim=1), grid_size),
    )


def _check_indices(name: str, idx: Tensor) -> None:
    check_tensor(name, idx)
    if idx.dtype in (torch.bool, torch.uint8):
        raise TypeError(
            f"{name}: must be positions, as signed integers, got {idx.dtype}; for a mask, True "
            "where a position is in, take TokenSet.from_mask"
        )
    if idx.is_floating_point() or idx.is_complex():
        raise TypeError(f"{name}: must be positions, as signed integers, got {idx.dtype}")
    if idx.dim() != 2:
        raise ValueError(f"{name} {tuple(idx.shape)}: must be [b, n], a row for each sample")


def _to_set(name: str, idx: Tensor, grid_size: tuple[int, ...]) -> Tensor:
    size = torch.Size(grid_size).numel()
    if idx.numel() and not 0 <= int(idx.min()) <= int(idx.max()) < size:
        raise ValueError(
            f"{name}: must lie on the grid {grid_size}, in [0, {size - 1}], got values from "
            f"{int(idx.min())} to {int(idx.max())}"
        )
    mask = torch.zeros(len(idx), size, dtype=torch.bool, device=idx.device)
    return mask.scatter_(1, idx.long(), True)
