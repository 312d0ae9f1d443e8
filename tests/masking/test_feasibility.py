"""Multi-block masks exist if and only if need + a <= A, and the error text names a remedy."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.strategies import multiblock_cases

from jepakit import InfeasibleMaskError, MultiBlockMask
from jepakit.masking._engine.block_sizes import draw_sizes, reachable_rectangles


def rounded(area: float, aspect: float, grid: tuple[int, int]) -> tuple[int, int]:
    sides = (math.sqrt(area * aspect), math.sqrt(area / aspect))
    return tuple(
        min(max(1, math.floor(side + 0.5)), limit) for side, limit in zip(sides, grid, strict=True)
    )


def dense_sizes(
    grid: tuple[int, int], scale: tuple[float, float], aspect: tuple[float, float], steps: int
) -> set[tuple[int, int]]:
    """Sizes of blocks for scales and aspect ratios on a dense grid over the ranges."""
    points = [step / steps for step in range(steps + 1)]
    scales = [scale[0] + (scale[1] - scale[0]) * point for point in points]
    aspects = [aspect[0] * (aspect[1] / aspect[0]) ** point for point in points]
    return {rounded(s * grid[0] * grid[1], a, grid) for s in scales for a in aspects}


@settings(max_examples=100)
@given(case=multiblock_cases())
def test_no_draw_is_larger_than_the_arithmetic_says(case):
    grid, arguments = case
    scale, aspect = arguments["target_scale"], arguments["target_aspect_ratio"]
    sizes = set(reachable_rectangles(grid, scale, aspect))
    dense = dense_sizes(grid, scale, aspect, 30)
    assert dense <= sizes
    assert max(h * w for h, w in dense) <= max(h * w for h, w in sizes)


@given(case=multiblock_cases(max_side=14))
def test_every_size_of_the_arithmetic_is_reached(case):
    """A bound that is never reached would refuse masks that exist."""
    (height, width), arguments = case
    ranges = [arguments["target_scale"], arguments["target_aspect_ratio"]]
    points = 60
    for h, w in reachable_rectangles((height, width), *ranges):
        # Sides that round to the size, on a grid of points; the ends stand for what is clipped.
        cells = []
        for side, limit in ((h, height), (w, width)):
            low, high = math.log(side - 0.5 if side > 1 else 1e-2), math.log(side + 0.5)
            cells.append(torch.linspace(low, high if side < limit else high + 4, points).double())
        log_h, log_w = cells[0][:, None], cells[1]
        step = max(float(cell[1] - cell[0]) for cell in cells)
        logs = (log_h + log_w - math.log(height * width), log_h - log_w)
        miss = torch.zeros(points, points, dtype=torch.float64)
        for value, (low, high) in zip(logs, ranges, strict=True):
            outside = torch.maximum(math.log(low) - value, value - math.log(high))
            miss = torch.maximum(miss, outside)
        assert miss.min() <= step, f"no scale and aspect ratio give {h} x {w}"


@given(case=multiblock_cases(), seed=st.integers(0, 2**31))
def test_drawn_sizes_are_the_reachable_ones(case, seed):
    grid, arguments = case
    scale, aspect = arguments["target_scale"], arguments["target_aspect_ratio"]
    sizes = reachable_rectangles(grid, scale, aspect)
    uniforms = torch.rand(200, 3, generator=torch.Generator().manual_seed(seed))
    largest = max(h * w for h, w in sizes)
    drawn = draw_sizes(grid, scale, aspect, (1.0, 1.0), uniforms, largest_rectangle=largest)
    assert {tuple(size) for size in drawn.tolist()} <= set(sizes)


@settings(max_examples=100)
@given(case=multiblock_cases(max_side=12))
def test_feasible_exactly_up_to_the_boundary(case):
    """need + a <= A, both sides of it, with a and A found by trying scales densely."""
    grid, arguments = case
    arguments |= {"allow_target_overlap": True, "context_length": "fixed"}
    size = math.prod(grid)
    sizes = reachable_rectangles(grid, arguments["target_scale"], arguments["target_aspect_ratio"])
    a = max(h * w for h, w in sizes)
    h, w = rounded(arguments["context_scale"][1] * size, grid[0] / grid[1], grid)
    most = h * w - a  # the upper end of context_scale gives the largest block
    if most >= 1:
        sampler = MultiBlockMask(grid, **arguments | {"min_context_coverage": most / size})
        assert sampler.min_context_tokens == most
    if 1 <= most + 1 <= size:
        with pytest.raises(InfeasibleMaskError):
            MultiBlockMask(grid, **arguments | {"min_context_coverage": (most + 1) / size})


@settings(max_examples=50)
@given(
    grid=st.tuples(st.integers(2, 12), st.integers(2, 12)),
    sides=st.tuples(st.integers(1, 6), st.integers(1, 6)),
)
def test_disjoint_blocks_fit_as_many_as_pack(grid, sides):
    """floor(H / h) * floor(W / w) blocks of one size can be disjoint, one more is refused."""
    h, w = (min(side, limit) for side, limit in zip(sides, grid, strict=True))
    fit = (grid[0] // h) * (grid[1] // w)
    arguments = {
        "target_scale": (h * w / math.prod(grid),) * 2,
        "target_aspect_ratio": (h / w, h / w),
        "context_scale": (1.0, 1.0),
        "min_context_coverage": 0.0,
        "allow_target_overlap": False,
    }
    if fit * h * w < math.prod(grid):  # else no context would be left
        MultiBlockMask(grid, num_targets=fit, **arguments)
    text = rf"only {grid[0] // h} \* {grid[1] // w} = {fit} always fit"
    with pytest.raises(InfeasibleMaskError, match=text):
        MultiBlockMask(grid, num_targets=fit + 1, **arguments)


def test_a_high_floor_takes_small_targets():
    """Trap: context of "85-100 %" read as a promise although targets are subtracted later."""
    sampler = MultiBlockMask((14, 14), min_context_coverage=0.85, target_scale=(0.03, 0.0375))
    masks = sampler(64, generator=torch.Generator().manual_seed(0))
    assert (masks.context.coverage() >= 0.85).all()
    text = (
        "MultiBlockMask on the grid (14, 14): min_context_coverage=0.85 needs 167 context tokens, "
        "and 167 + 42 (largest target block, 7 x 6) = 209 exceeds 196 (largest context block). "
        "Change one of: target_scale=(0.1262, 0.1262); min_context_coverage=0.7857"
    )
    with pytest.raises(InfeasibleMaskError, match=f"^{re.escape(text)}$"):
        MultiBlockMask((14, 14), min_context_coverage=0.85, target_scale=(0.15, 0.2))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"context_length": 50},
            "context_length=50 exceeds the 49 tokens that min_context_coverage=0.25 promises, so "
            "it could not always be met. Change one of: min_context_coverage=0.2551; "
            "context_length=49",
        ),
        (
            {"allow_target_overlap": False, "num_targets": 3},
            "num_targets=3 blocks of 8 x 5 cannot be disjoint, only 1 * 2 = 2 always fit. Change "
            "one of: target_scale=(0.15, 0.1913); num_targets=2; allow_target_overlap=True",
        ),
        (
            {
                "allow_target_overlap": False,
                "target_scale": (0.1, 0.15),
                "context_scale": (0.6, 0.8),
            },
            "min_context_coverage=0.25 needs 49 context tokens, and 49 + 4 * 35 (disjoint target "
            "blocks, up to 7 x 5) = 189 exceeds 169 (largest context block). Change one of: "
            "target_scale=(0.1, 0.1492); min_context_coverage=0.1479; context_scale=(0.6, 1.0); "
            "num_targets=3; allow_target_overlap=True",
        ),
        (
            {"context_scale": (0.3, 0.4)},
            "min_context_coverage=0.25 needs 49 context tokens, and 49 + 42 (largest target block, "
            "7 x 6) = 91 exceeds 81 (largest context block). Change one of: "
            "target_scale=(0.1492, 0.1492); min_context_coverage=0.1989; context_scale=(0.3, 1.0)",
        ),
        (
            {"min_context_coverage": 0.85, "context_length": 160},
            "Change one of: target_scale=(0.1262, 0.1262)",
        ),
    ],
)
def test_texts(arguments, text):
    with pytest.raises(InfeasibleMaskError) as caught:
        MultiBlockMask((14, 14), **arguments)
    message = str(caught.value)
    assert message.startswith("MultiBlockMask on the grid (14, 14): ")
    assert text in message


def test_where_no_single_change_is_enough():
    with pytest.raises(
        InfeasibleMaskError, match=r"No single change is enough: lower target_scale"
    ):
        MultiBlockMask((1, 1))


def test_it_is_a_value_error():
    assert issubclass(InfeasibleMaskError, ValueError)
