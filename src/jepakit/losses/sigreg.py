"""SIGReg: whether features are an isotropic Gaussian, asked along random directions."""

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributed import ProcessGroup

from jepakit._checks import check_int, check_number, type_name
from jepakit._distributed import sum_over_ranks
from jepakit._precision import full_precision
from jepakit._rows import check_rows, to_rows
from jepakit.losses._characteristic import characteristic_sums

__all__ = ["check_sigreg", "draw_slices", "sigreg", "slice_statistic"]


def sigreg(
    features: Float[Tensor, "*batch d"],
    valid: Bool[Tensor, "*batch"] | None = None,
    *,
    num_slices: int = 1024,
    num_points: int = 17,
    t_max: float = 3.0,
    generator: torch.Generator | None = None,
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    r"""Mean Epps-Pulley statistic of random projections against the standard normal.

    $$T = \frac{1}{S} \sum_{s=1}^{S} n \int_{-t_\mathrm{max}}^{t_\mathrm{max}}
        \Big| \frac{1}{n} \sum_{i=1}^{n} e^{\mathrm{i} t\, a_s \cdot x_i} - e^{-t^2/2} \Big|^2
        e^{-t^2/2}\, dt$$

    with unit vectors $a_s$ drawn anew in each call. Samples of N(0, I) give about 1.05 at the
    default `t_max`, whatever their number; a full collapse to 0 gives 0.40 n. The projections are
    neither centred nor scaled, since it is mean 0 and variance 1 that are asked for. The gradient
    moves equal samples alike: exactly constant features go to 0 together, and the smallest
    difference between them grows.

    Memory is linear in the rows, and less than 100 MB beside the features and the slices: the
    backward computes the projections again, block by block. Computed in float32. One derivative is
    given, not a second.

    Args:
        features: Feature vectors: pooled `[b d]`, or tokens `[b n d]`, of which every valid one is
            a sample. The test takes samples to be independent; views of one image are not, so give
            each view its own call, as `lejepa_loss` does.
        valid: True where a row counts. All rows if None. With none the statistic is 0.
        num_slices: $S$, the number of directions.
        num_points: Points of the trapezoid rule on $[0, t_\mathrm{max}]$, both ends included; the
            integrand is even. At least 2.
        t_max: End of the integral, in 1 / units of the features; above 0.
        generator: Where the directions come from; of the CPU or of the features' device. The
            device's default generator if None.
        process_group: Test the joined rows of all ranks of this group: each rank returns the global
            statistic, with a gradient scaled so that DDP's averaging gives the gradient of one big
            batch. Every rank must call. The directions are those of the group's first rank.

    Raises:
        TypeError: If `features` is not floating point, `valid` not bool, or `generator` or
            `process_group` of another kind.
        ValueError: If shapes do not fit (nothing is broadcast), there are no rows, or a number is
            out of its range.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(1000, 16, generator=generator)
        >>> bool(sigreg(x, generator=generator) < 2)
        True
        >>> round(sigreg(0 * x, generator=generator).item())  # collapsed
        402

    Source:
        LeJEPA (arXiv:2511.08544). The published minimal example integrates from 0 to 3 and doubles,
        as here; the paper's listing spans -5 to 5 with the same 17 points. The statistic carries
        the factor n, as both do. Differences: the trapezoid sum is the same to rounding, since the
        point t = 0 adds nothing; slices come from the first rank instead of a seed that ranks must
        agree on.
    """
    check_rows("features", features, valid, process_group)
    check_sigreg(num_slices, num_points, t_max, generator)
    with full_precision(features):
        values, present = to_rows(features, valid)
        slices = draw_slices(values, num_slices, generator, process_group)
        return slice_statistic(values, present, slices, num_points, t_max, process_group)


def check_sigreg(num_slices: int, num_points: int, t_max: float, generator: object) -> None:
    """Raise unless these are arguments of `sigreg`."""
    check_int("num_slices", num_slices, minimum=1)
    check_int("num_points", num_points, minimum=2)
    check_number("t_max", t_max, positive=True)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator={generator!r}: must be a torch.Generator or None, got {type_name(generator)}"
        )


def draw_slices(
    rows: Tensor,
    num_slices: int,
    generator: torch.Generator | None,
    process_group: ProcessGroup | None,
) -> Tensor:
    """Directions as unit columns `[d num_slices]`, the same on every rank."""
    # Always in float32, so that they do not depend on the features' type.
    directions = torch.randn(
        rows.shape[1],
        num_slices,
        generator=generator,
        dtype=torch.float32,
        device=rows.device if generator is None else generator.device,
    ).to(rows.device)
    if process_group is not None:
        # Generators of ranks may differ, and the default ones do.
        dist.broadcast(directions, dist.get_global_rank(process_group, 0), group=process_group)
    directions = directions.to(rows.dtype)
    lengths: Tensor = torch.linalg.vector_norm(directions, dim=0, keepdim=True)
    return directions / lengths.clamp(min=1e-12)


def slice_statistic(
    rows: Tensor,
    present: Tensor,
    slices: Tensor,
    num_points: int,
    t_max: float,
    process_group: ProcessGroup | None,
) -> Tensor:
    """The mean over slices of the Epps-Pulley statistic of the rows of all ranks."""
    step = t_max / (num_points - 1)
    weights = present.squeeze(1).to(rows.dtype)
    # At t = 0 both characteristic functions are 1: the point adds nothing and is left out.
    sums = characteristic_sums(rows, weights, slices, num_points - 1, step)
    sums = sum_over_ranks(sums, process_group)
    count = sum_over_ranks(weights.sum(), process_group)
    t = step * torch.arange(1, num_points, device=rows.device, dtype=rows.dtype)
    normal = torch.exp(-t.square() / 2).unsqueeze(1)
    real, imaginary = (sums / count.clamp(min=1)).unbind()
    gaps = (real - normal).square() + imaginary.square()
    # Twice the step for both signs of t; half of that at the end.
    areas = torch.full_like(normal, 2 * step)
    areas[-1] = step
    return count * (gaps * normal * areas).sum(dim=0).mean()
