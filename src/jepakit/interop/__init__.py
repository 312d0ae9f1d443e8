"""Weights and configurations of published models: load, save and translate them."""

from jepakit.interop._weights import Adaptation
from jepakit.interop.huggingface import load_hf_ijepa
from jepakit.interop.huggingface_video import hf_vjepa2_state_dict, load_hf_vjepa2
from jepakit.interop.ijepa import ijepa_checkpoint, load_ijepa
from jepakit.interop.migration import ConfigKey, MigratedConfig, migrate_config
from jepakit.interop.timm import timm_state_dict
from jepakit.interop.vjepa import load_vjepa, load_vjepa2, vjepa2_checkpoint, vjepa_checkpoint

__all__ = [
    "Adaptation",
    "ConfigKey",
    "MigratedConfig",
    "hf_vjepa2_state_dict",
    "ijepa_checkpoint",
    "load_hf_ijepa",
    "load_hf_vjepa2",
    "load_ijepa",
    "load_vjepa",
    "load_vjepa2",
    "migrate_config",
    "timm_state_dict",
    "vjepa2_checkpoint",
    "vjepa_checkpoint",
]
