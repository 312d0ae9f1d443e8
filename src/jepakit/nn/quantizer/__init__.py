"""Vectors as codes of a learned book."""

from jepakit.nn.quantizer.quantized import Quantized
from jepakit.nn.quantizer.vector_quantizer import VectorQuantizer

__all__ = ["Quantized", "VectorQuantizer"]
