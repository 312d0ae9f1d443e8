"""Features as rows in float64, without gradient: the first step of every diagnostic."""

import torch
from torch import Tensor

from jepakit._checks import check_floating, check_row_mask


def check_features(name: str, features: Tensor, valid: Tensor | None, *, minimum: int) -> None:
    """Raise unless `features` are `[*batch d]` with `minimum` rows, and `valid` fits them."""
    check_floating(name, features)
    shape = tuple(features.shape)
    if features.dim() < 2 or shape[-1] == 0 or features.shape[:-1].numel() < minimum:
        plural = "row" if minimum == 1 else "rows"
        rule = f" with at least {minimum} {plural}" if minimum else " with d at least 1"
        raise ValueError(f"{name} {shape}: must have the shape [*batch, d]{rule}")
    check_row_mask(name, features, valid)


def float64(tensor: Tensor) -> Tensor:
    """Return the tensor in float64, detached; on the CPU where its device has no float64."""
    tensor = tensor.detach()
    if tensor.device.type == "mps":
        tensor = tensor.cpu()
    return tensor.double()


def masked_rows(features: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return all rows `[n d]`, zeros in place of padding, and their validity `[n 1]`.

    Shapes do not depend on `valid`, so there is no host synchronisation.
    """
    rows = float64(features).flatten(0, -2)
    if valid is None:
        return rows, torch.ones(len(rows), 1, dtype=torch.bool, device=rows.device)
    present = valid.detach().reshape(-1, 1).to(rows.device)
    return rows.masked_fill(~present, 0), present


def valid_rows(name: str, features: Tensor, valid: Tensor | None, *, minimum: int) -> Tensor:
    """Return the valid rows `[n d]`; raise unless at least `minimum` exist and all are finite."""
    check_features(name, features, valid, minimum=minimum)
    rows = float64(features).flatten(0, -2)
    if valid is not None:
        rows = rows[valid.detach().flatten().to(rows.device)]
        if len(rows) < minimum:
            raise ValueError(
                f"valid: must be True for at least {minimum} rows of {name} "
                f"{tuple(features.shape)}, got {len(rows)}"
            )
    finite = rows.isfinite().all(dim=1)
    if not finite.all():
        raise ValueError(
            f"{name} {tuple(features.shape)}: must be finite, but {int((~finite).sum())} of "
            f"{len(rows)} rows hold NaN or infinity"
        )
    return rows
