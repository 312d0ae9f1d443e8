"""Modules with a forward: the encoder around a timm backbone, the pyramid and the predictor."""

from jepakit.nn.backbones import UnsupportedBackboneError
from jepakit.nn.encoder import MaskedViT
from jepakit.nn.predictor import MaskedPredictor
from jepakit.nn.pyramid import HierarchicalPyramid, Level

__all__ = [
    "HierarchicalPyramid",
    "Level",
    "MaskedPredictor",
    "MaskedViT",
    "UnsupportedBackboneError",
]
