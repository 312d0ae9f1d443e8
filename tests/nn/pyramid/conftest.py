"""Pyramids whose parameters are far from where they start."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from jepakit import HierarchicalPyramid


@pytest.fixture(scope="session")
def build_pyramid() -> Callable[..., HierarchicalPyramid]:
    """`(grid_size, dim=6, **arguments)`; pools with parameters start as the plain mean."""

    def build(grid_size: tuple[int, ...], dim: int = 6, **arguments: Any) -> HierarchicalPyramid:
        pyramid = HierarchicalPyramid(grid_size, dim, **arguments)
        with torch.no_grad():
            for parameter in pyramid.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.5)
        return pyramid

    return build
