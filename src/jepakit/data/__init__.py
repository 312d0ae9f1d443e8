"""Small image sets as tensors: what the examples train on, and a first try of your own parts."""

from jepakit.data.batches import EpochIndex, ResumableBatches
from jepakit.data.crops import random_crops
from jepakit.data.digits import digit_canvases
from jepakit.data.pixels import PixelStatistics
from jepakit.data.sources import load_images

__all__ = [
    "EpochIndex",
    "PixelStatistics",
    "ResumableBatches",
    "digit_canvases",
    "load_images",
    "random_crops",
]
