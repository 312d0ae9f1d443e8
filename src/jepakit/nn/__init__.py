"""Modules with a forward: the encoder around a timm backbone, pyramid, predictor, quantizer."""

from jepakit.nn._backbones import UnsupportedBackboneError
from jepakit.nn.masked_vit import MaskedViT
from jepakit.nn.predictor import MaskedPredictor
from jepakit.nn.pyramid import HierarchicalPyramid, Level
from jepakit.nn.quantizer import Quantized, VectorQuantizer
from jepakit.nn.sincos_positions import init_sincos_positions

__all__ = [
    "HierarchicalPyramid",
    "Level",
    "MaskedPredictor",
    "MaskedViT",
    "Quantized",
    "UnsupportedBackboneError",
    "VectorQuantizer",
    "init_sincos_positions",
]
