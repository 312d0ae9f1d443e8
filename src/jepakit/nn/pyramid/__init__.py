"""Pyramids of features: several levels from the features of one backbone."""

from jepakit.nn.pyramid.hierarchical_pyramid import HierarchicalPyramid, Level

__all__ = ["HierarchicalPyramid", "Level"]
