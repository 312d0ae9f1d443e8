"""Small sets of images and clips, with batches, crops and standardisation to train on them."""

from jepakit.data.clips import load_clips
from jepakit.data.crops import random_crops
from jepakit.data.datasets import load_images
from jepakit.data.motions import moving_textures
from jepakit.data.pixel_statistics import PixelStatistics
from jepakit.data.resumable_batches import EpochIndex, ResumableBatches
from jepakit.data.textures import textured_shapes

__all__ = [
    "EpochIndex",
    "PixelStatistics",
    "ResumableBatches",
    "load_clips",
    "load_images",
    "moving_textures",
    "random_crops",
    "textured_shapes",
]
