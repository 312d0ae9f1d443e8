"""What the ranks of trainer_ranks.py need: imported once, before they are forked."""

import accelerate
import lightning
import timm

import jepakit
import jepakit.data
import jepakit.interop
import jepakit.nn
import jepakit.optim

__all__ = ["accelerate", "jepakit", "lightning", "timm"]
