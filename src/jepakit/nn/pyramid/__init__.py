"""Several levels of abstraction from the tokens of one backbone."""

from jepakit.nn.pyramid.hierarchical_pyramid import HierarchicalPyramid
from jepakit.nn.pyramid.level import Level

__all__ = ["HierarchicalPyramid", "Level"]
