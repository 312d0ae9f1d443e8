"""Modules: encoders, predictor, their block and embeddings, pyramid and vector quantizer."""

from jepakit.nn._backbones import UnsupportedBackboneError
from jepakit.nn.blocks import Block
from jepakit.nn.embeddings import Frames, Patches, Tubelets
from jepakit.nn.masked_vit import MaskedViT
from jepakit.nn.positions import init_sincos_positions
from jepakit.nn.predictor import MaskedPredictor
from jepakit.nn.pyramid import HierarchicalPyramid, Level
from jepakit.nn.quantizer import Quantized, VectorQuantizer
from jepakit.nn.token_vit import TokenViT

__all__ = [
    "Block",
    "Frames",
    "HierarchicalPyramid",
    "Level",
    "MaskedPredictor",
    "MaskedViT",
    "Patches",
    "Quantized",
    "TokenViT",
    "Tubelets",
    "UnsupportedBackboneError",
    "VectorQuantizer",
    "init_sincos_positions",
]
