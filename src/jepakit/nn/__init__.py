"""Modules: the encoder around a timm backbone, predictor, pyramid and vector quantizer."""

from jepakit.nn._backbones import UnsupportedBackboneError
from jepakit.nn.init import init_linear_weights
from jepakit.nn.masked_vit import MaskedViT
from jepakit.nn.positions import init_sincos_positions
from jepakit.nn.predictor import MaskedPredictor
from jepakit.nn.pyramid import HierarchicalPyramid, Level
from jepakit.nn.quantizer import Quantized, VectorQuantizer

__all__ = [
    "HierarchicalPyramid",
    "Level",
    "MaskedPredictor",
    "MaskedViT",
    "Quantized",
    "UnsupportedBackboneError",
    "VectorQuantizer",
    "init_linear_weights",
    "init_sincos_positions",
]
