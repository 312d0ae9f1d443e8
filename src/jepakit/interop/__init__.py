"""Weights of published models: load them into your modules, and save yours in their layouts."""

from jepakit.interop._weights import Adaptation
from jepakit.interop.huggingface import load_hf_ijepa
from jepakit.interop.ijepa import ijepa_checkpoint, load_ijepa
from jepakit.interop.timm import timm_state_dict

__all__ = ["Adaptation", "ijepa_checkpoint", "load_hf_ijepa", "load_ijepa", "timm_state_dict"]
