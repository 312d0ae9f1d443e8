"""Small image sets as tensors, with batches, crops and standardisation to train on them."""

from jepakit.data.crops import random_crops
from jepakit.data.datasets import load_images
from jepakit.data.textures import textured_shapes
from jepakit.data.pixel_statistics import PixelStatistics
from jepakit.data.resumable_batches import EpochIndex, ResumableBatches

__all__ = [
    "EpochIndex",
    "PixelStatistics",
    "ResumableBatches",
    "textured_shapes",
    "load_images",
    "random_crops",
]
