"""The grids of a pyramid's levels."""

from jepakit._checks import check_int

__all__: list[str] = []


def level_grids(grid_size: tuple[int, ...], num_levels: int) -> tuple[tuple[int, ...], ...]:
    """Grids from the finest up, sides halved upwards; raises where there are not that many."""
    check_int("num_levels", num_levels, minimum=1)
    most = max(side - 1 for side in grid_size).bit_length()
    if num_levels - 1 > most:
        raise ValueError(
            f"num_levels={num_levels}: the grid {grid_size} is a single cell on level {most}, so "
            f"it has {most + 1} levels"
        )
    return tuple(tuple(-(-side // 2**level) for side in grid_size) for level in range(num_levels))
