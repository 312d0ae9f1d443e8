"""Features as rows in float64, without gradient: the first step of every diagnostic."""

from torch import Tensor

from jepakit._checks import check_rows
from jepakit._rows import Rows, to_rows


def float64(tensor: Tensor) -> Tensor:
    """Return the tensor in float64, detached; on the CPU where its device has no float64."""
    tensor = tensor.detach()
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def masked_rows(features: Tensor, valid: Tensor | None) -> Rows:
    """Return all rows, zeros in place of padding; no shape depends on `valid`."""
    rows = float64(features)
    return to_rows(rows, None if valid is None else valid.to(rows.device))


def valid_rows(name: str, features: Tensor, valid: Tensor | None, *, minimum: int) -> Tensor:
    """Return the valid rows `[n d]`; raise unless at least `minimum` exist and all are finite."""
    check_rows(name, features, valid, minimum=minimum)
    shape = tuple(features.shape)
    rows = float64(features).flatten(0, -2)
    if valid is not None:
        rows = rows[valid.flatten().to(rows.device)]
        if len(rows) < minimum:
            rule = f"must be True for at least {minimum} rows of {name}"
            raise ValueError(f"valid: {rule}, got {len(rows)}")
    bad = int((~rows.isfinite()).any(dim=1).sum())
    if bad:
        raise ValueError(f"{name} {shape}: must be finite, but {bad} of {len(rows)} rows are not")
    return rows
