"""The parts that a user built, seen through their wrappers, and their tensors by name."""

from typing import Any, TypeVar

from torch import Tensor, nn

from jepakit._checks import type_name
from jepakit._wrapped import clean_names, fsdp_parts, loaded_type, unwrap
from jepakit.nn import MaskedPredictor, MaskedViT
from jepakit.teacher import EMATeacher

__all__: list[str] = []

_Part = TypeVar("_Part", bound=nn.Module)


def as_encoder(name: str, module: nn.Module) -> MaskedViT:
    """The `MaskedViT` within wrappers."""
    return _within(name, module, MaskedViT)


def as_predictor(name: str, module: nn.Module) -> MaskedPredictor:
    """The `MaskedPredictor` within wrappers."""
    return _within(name, module, MaskedPredictor)


def as_teacher(name: str, module: nn.Module) -> EMATeacher:
    """The `EMATeacher` within wrappers."""
    return _within(name, module, EMATeacher)


def _within(name: str, module: nn.Module, kind: type[_Part]) -> _Part:
    inner = unwrap(module) if isinstance(module, nn.Module) else module
    if not isinstance(inner, kind):
        raise TypeError(
            f"{name}={type_name(inner)}: must be the {kind.__name__} that the weights belong to, "
            "wrapped by DDP or torch.compile or not"
        )
    return inner


def backbone_tensors(name: str, encoder: MaskedViT) -> dict[str, Tensor]:
    """What a backbone's checkpoint holds, under timm's names; shares the backbone's memory."""
    return tensors_of(name, unwrap(encoder.backbone))


def tensors_of(name: str, module: nn.Module) -> dict[str, Tensor]:
    """What a module's checkpoint holds; shares the module's memory."""
    found: dict[str, Any] = clean_names(module.state_dict().items())
    sharded = loaded_type("torch.distributed.tensor", "DTensor")
    if fsdp_parts(module) or any(isinstance(tensor, sharded) for tensor in found.values()):
        raise ValueError(
            f"{name}: must not be sharded yet; load weights before fully_shard, and save them from "
            "the whole tensors that get_model_state_dict(..., full_state_dict=True) gives"
        )
    for key, tensor in found.items():
        if tensor.is_meta:
            raise ValueError(
                f"{name}: {key} is on the meta device and holds nothing; use to_empty(device=...) "
                "first"
            )
    return found


def square_side(name: str, grid_size: tuple[int, ...]) -> int:
    """The side of a grid as published models have them: two axes, square."""
    if len(grid_size) != 2 or grid_size[0] != grid_size[1]:
        raise ValueError(
            f"{name} on the grid {grid_size}: must be on a square grid (H, H), since the published "
            "layout knows no other"
        )
    return grid_size[0]
