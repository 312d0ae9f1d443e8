"""Arguments of samplers from whatever draws numbers: hypothesis, or a fuzz loop's `random`."""

import math
from collections.abc import Callable, Sequence
from typing import Any

__all__: list[str] = []


def multiblock_arguments(
    integer: Callable[[int, int], int],
    fraction: Callable[[float, float], float],
    choose: Callable[[Sequence[Any]], Any],
    *,
    max_side: int = 32,
) -> tuple[tuple[int, int], dict[str, Any]]:
    """Arguments of a `MultiBlockMask`, from whatever draws numbers; most of them feasible."""
    grid = (integer(2, max_side), integer(2, max_side))
    size = math.prod(grid)
    num_targets = integer(1, 8)
    overlap = choose([True, True, False])
    # Small blocks for many disjoint targets, up to half of the grid otherwise.
    most = 0.5 if overlap else 0.4 / num_targets
    high = math.exp(fraction(math.log(0.004), math.log(most)))
    low = high * choose([1.0, fraction(0.2, 1.0)])
    a0 = math.exp(fraction(-1.2, 0.8))
    a1 = a0 * math.exp(fraction(0.0, 1.0)) if choose([True, True, False]) else a0
    c1 = choose([1.0, fraction(0.3, 1.0)])
    c0 = c1 * choose([1.0, fraction(0.3, 1.0)])
    room = max(0.0, c1 - high * (1 if overlap else num_targets))
    coverage = choose([0.0, room, room * fraction(0.0, 1.0), room * fraction(0.0, 1.0)])
    need = max(1, math.floor(coverage * size))
    length = choose(["pad", "trim", "int"])
    return grid, {
        "num_targets": num_targets,
        "target_scale": (low, high),
        "target_aspect_ratio": (a0, a1),
        "context_scale": (c0, c1),
        "min_context_coverage": coverage,
        "allow_target_overlap": overlap,
        "block_size": choose(["batch", "sample"]),
        "context_length": integer(1, need) if length == "int" else length,
    }
