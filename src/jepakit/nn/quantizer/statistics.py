"""Sums over the vectors of all ranks, and vectors drawn from them; alike on every rank."""

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__: list[str] = []


def totals(
    columns: Float[Tensor, "n c"],
    indices: Int[Tensor, " n"],
    num_codes: int,
    process_group: dist.ProcessGroup | None,
) -> Float[Tensor, "k c"]:
    """The sum of the rows of each code, over all ranks."""
    sums = columns.new_zeros(num_codes, columns.shape[1]).index_add_(0, indices, columns)
    if process_group is not None:
        dist.all_reduce(sums, group=process_group)
    return sums


def draw_vectors(
    vectors: Float[Tensor, "n d"],
    present: Bool[Tensor, " n"],
    wanted: Bool[Tensor, " k"],
    generator: torch.Generator | None,
    process_group: dist.ProcessGroup | None,
) -> tuple[Float[Tensor, "k d"], Int[Tensor, ""]]:
    """A vector for each place that is wanted, and how many vectors are present on all ranks.

    The present vectors, in the order of ranks and rows, are cut into as many stretches as there are
    places, and each place gets one of its own: no vector comes twice unless there are too few.
    Neither padding nor how rows are spread over ranks changes what is drawn, and nothing is read
    back from the device.
    """
    device = vectors.device if generator is None else generator.device
    uniform = torch.rand(len(wanted), generator=generator, dtype=torch.float32, device=device)
    uniform = uniform.to(vectors.device)
    known = present.cumsum(dim=0)
    own = count = present.sum()
    before = torch.zeros_like(own)
    if process_group is not None:
        # Generators of ranks may differ, and the default ones do.
        dist.broadcast(uniform, dist.get_global_rank(process_group, 0), group=process_group)
        parts = [torch.empty_like(count) for _ in range(dist.get_world_size(process_group))]
        dist.all_gather(parts, own, group=process_group)
        counts = torch.stack(parts)
        before, count = counts[: dist.get_rank(process_group)].sum(), counts.sum()

    place, places = wanted.cumsum(dim=0) - 1, wanted.sum().clamp(min=1)
    low, high = place * count // places, (place + 1) * count // places
    length = (high - low).clamp(min=1)
    number = low + torch.minimum((uniform * length).long(), length - 1) - before
    here = wanted & (number >= 0) & (number < own)
    found = vectors.new_zeros(len(wanted), vectors.shape[1])
    if len(vectors):
        # The first row up to which there are number + 1 vectors.
        row = torch.searchsorted(known, number + 1).clamp(max=len(vectors) - 1)
        found = torch.where(here.unsqueeze(1), vectors[row], found)
    if process_group is not None:
        dist.all_reduce(found, group=process_group)  # what the other ranks put in is 0
    return found, count
