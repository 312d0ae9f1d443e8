"""Modules: encoders, predictors, their block and embeddings, pools, pyramid, quantizer."""

from jepakit.nn._backbones import UnsupportedBackboneError
from jepakit.nn.blocks import Block
from jepakit.nn.causal_predictor import CausalPredictor
from jepakit.nn.embeddings import Frames, Patches, Tubelets
from jepakit.nn.masked_vit import MaskedViT
from jepakit.nn.pooling import AttentionPool, SetEncoder, TemporalPool
from jepakit.nn.positions import init_sincos_positions
from jepakit.nn.predictor import MaskedPredictor
from jepakit.nn.pyramid import HierarchicalPyramid, Level
from jepakit.nn.quantizer import Quantized, VectorQuantizer
from jepakit.nn.token_vit import TokenViT

__all__ = [
    "AttentionPool",
    "Block",
    "CausalPredictor",
    "Frames",
    "HierarchicalPyramid",
    "Level",
    "MaskedPredictor",
    "MaskedViT",
    "Patches",
    "Quantized",
    "SetEncoder",
    "TemporalPool",
    "TokenViT",
    "Tubelets",
    "UnsupportedBackboneError",
    "VectorQuantizer",
    "init_sincos_positions",
]
