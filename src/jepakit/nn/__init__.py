"""Modules with a forward: the encoder around a timm backbone and the predictor."""

from jepakit.nn.backbones import UnsupportedBackboneError
from jepakit.nn.encoder import MaskedViT
from jepakit.nn.predictor import MaskedPredictor

__all__ = ["MaskedPredictor", "MaskedViT", "UnsupportedBackboneError"]
