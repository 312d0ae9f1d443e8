"""Parameters in an optimiser: groups with and without weight decay; new ones in mid-training."""

from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from jepakit._checks import as_image_size, as_number, type_name
from jepakit._wrapped import fsdp_parts, unwrap

__all__ = ["param_groups", "set_image_size"]

# Modules whose `weight` does not multiply an input vector as a matrix.
_NORMS_AND_EMBEDDINGS = (
    nn.Embedding,
    nn.EmbeddingBag,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._NormBase,
)


def param_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    decay: Iterable[str] = (),
    no_decay: Iterable[str] = (),
) -> list[dict[str, Any]]:
    """Split parameters into a group with weight decay and one without, for any torch optimiser.

    Decayed are the matrices that multiply an input: parameters of at least two axes that are called
    a weight (`weight`, `in_proj_weight` ...), in any module but a norm or an embedding. Not decayed
    is everything else: norms, biases, positions, class, register and mask tokens, queries, relative
    position tables, temperatures, learned weights of losses; and the names that a module returns
    from `no_weight_decay()`, timm's convention, at any depth of the model.

    Frozen parameters and empty groups are left out. A shared parameter is listed once, and decayed
    only if it would be under all of its names.

    Args:
        model: The trained module. Put several into an `nn.ModuleDict`, losses with parameters too:
            a learned weight that is in no optimiser never changes.
        weight_decay: Of the first group, at least 0; the second has 0.
        decay: Full names of further parameters to decay, such as matrices that a module holds
            under another name; `*` matches anything.
        no_decay: Names of parameters not to decay; takes precedence over `decay`.

    Raises:
        ValueError: If a name matches no trained parameter, or the model has none.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from jepakit import MaskedPredictor
        >>> from jepakit.losses import LearnableTemperature
        >>> predictor = MaskedPredictor((4, 4), 64, predictor_embed_dim=32, depth=1, num_heads=2)
        >>> model = nn.ModuleDict({"predictor": predictor, "temperature": LearnableTemperature()})
        >>> groups = param_groups(model, 0.05)
        >>> [(len(group["params"]), group["weight_decay"]) for group in groups]
        [(6, 0.05), (14, 0.0)]
        >>> optimizer = torch.optim.AdamW(groups, lr=1e-3)

    Source:
        After timm's `param_groups_weight_decay` (published code). Differences: there the names that
        a backbone lists match nothing within a wrapper such as `MaskedViT`, and mask tokens and
        other parameters of more axes that no list names are decayed.
    """
    if not isinstance(model, nn.Module):
        kind = type_name(model)
        raise TypeError(f"model: must be one torch.nn.Module, such as an nn.ModuleDict, got {kind}")
    weight_decay = as_number("weight_decay", weight_decay, minimum=0)
    # Tuples: a generator of names would be empty after the check.
    decay, no_decay = _as_names("decay", decay), _as_names("no_decay", no_decay)
    trained = [
        (f"{prefix}.{own_name}" if prefix else own_name, module, parameter)
        for prefix, module in model.named_modules(remove_duplicate=False)
        for own_name, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
        if parameter.requires_grad
    ]
    if not trained:
        raise ValueError("model: has no parameter that needs a gradient")
    for argument, patterns in (("decay", decay), ("no_decay", no_decay)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name, _, _ in trained):
                raise ValueError(f"{argument}: {pattern!r} matches no parameter that is trained")
    # Names in full, from every `no_weight_decay()` in the model.
    listed = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules(remove_duplicate=False)
        if callable(names := getattr(module, "no_weight_decay", None))
        for name in names()
    }
    decayed: dict[nn.Parameter, bool] = {}
    for name, module, parameter in trained:
        decays = _is_matrix(module, name, parameter) and not _matches(name, listed)
        decays = (decays or _matches(name, decay)) and not _matches(name, no_decay)
        # A shared parameter comes under several names.
        decayed[parameter] = decays and decayed.get(parameter, True)
    groups = []
    for group_decay, in_group in ((weight_decay, True), (0.0, False)):
        members = [parameter for parameter, decays in decayed.items() if decays == in_group]
        if members:
            groups.append({"params": members, "weight_decay": group_decay})
    return groups


def set_image_size(
    encoder: nn.Module,
    image_size: int | Sequence[int],
    *,
    optimizer: torch.optim.Optimizer | None,
    teacher: nn.Module | None = None,
) -> list[str]:
    """Change the size of images that an encoder takes, in mid-training; return what was replaced.

    timm's `set_input_size` interpolates positions and makes a new parameter of them, which the
    optimiser does not know: it would stay as it is for the rest of the training. Here it takes the
    old one's place in its parameter group. Its state starts anew; that of all other parameters, and
    the groups themselves, stay. The teacher is resized likewise, and keeps its averages,
    interpolated. Not needed for models that take any size, such as those with
    `dynamic_img_size=True`.

    A sampler and a predictor for one grid have to be built anew.

    Args:
        encoder: A `MaskedViT`, compiled or not.
        image_size: Pixels, `(height, width)`, or one number for square images.
        optimizer: The optimiser that trains the encoder; None where there is none.
        teacher: An `EMATeacher` of the encoder.

    Returns:
        The names of the replaced parameters, empty if positions are not learned.

    Raises:
        TypeError: If a backbone has no `set_input_size`.
        ValueError: If the size is no multiple of the patch size, or a module is in
            `DistributedDataParallel` or sharded, which hold the old parameters: do this before.

    Example:
        >>> import timm, torch
        >>> from jepakit import EMATeacher, MaskedViT
        >>> backbone = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1)
        >>> encoder = MaskedViT(backbone)
        >>> teacher = EMATeacher(encoder, momentum=0.996)
        >>> optimizer = torch.optim.AdamW(param_groups(encoder, weight_decay=0.05), lr=1e-3)
        >>> set_image_size(encoder, 384, optimizer=optimizer, teacher=teacher)
        ['backbone.pos_embed']
        >>> encoder.grid_size
        (24, 24)
        >>> teacher.update(encoder)
    """
    size = as_image_size("image_size", image_size)
    if not (optimizer is None or isinstance(optimizer, torch.optim.Optimizer)):
        raise TypeError(f"optimizer: must be a torch optimiser or None, got {type_name(optimizer)}")
    student = _resizable("encoder", encoder, size)
    average = None
    if teacher is not None:
        module = getattr(unwrap(teacher), "module", None)
        if not isinstance(module, nn.Module):
            raise TypeError(f"teacher: must be an EMATeacher, got {type_name(teacher)}")
        average = _resizable("teacher.module", module, size)
    replaced = _resize(student, size)
    if average is not None:
        _resize(average, size)
    if optimizer is not None:
        new = dict(replaced.values())
        for group in optimizer.param_groups:
            group["params"] = [new.get(parameter, parameter) for parameter in group["params"]]
        for old in new:
            optimizer.state.pop(old, None)
    return list(replaced)


def _resizable(name: str, module: nn.Module, size: tuple[int, int]) -> Any:
    """Return the encoder within wrappers; raise unless it can be resized."""
    encoder: Any = unwrap(module)
    backbone = unwrap(getattr(encoder, "backbone", encoder))
    if not hasattr(encoder, "grid_size_of"):
        raise TypeError(f"{name}: must be a MaskedViT, got {type_name(encoder)}")
    if not hasattr(backbone, "set_input_size"):
        raise TypeError(f"{name}: its {type(backbone).__name__} has no set_input_size")
    if fsdp_parts(module) or any(
        isinstance(part, nn.parallel.DistributedDataParallel) for part in module.modules()
    ):
        raise ValueError(
            f"{name}: must not be in DistributedDataParallel or sharded yet, which hold its old "
            "parameters; resize the plain module and wrap it anew"
        )
    embed: Any = backbone.patch_embed
    if any(side % patch for side, patch in zip(size, embed.patch_size, strict=True)):
        patch = tuple(embed.patch_size)
        raise ValueError(f"image_size={size}: must be multiples of the {name}'s patch size {patch}")
    return encoder


def _resize(encoder: Any, size: tuple[int, int]) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """Resize an encoder; return the old and the new parameter for each name that has another."""
    before = dict(encoder.named_parameters())
    backbone: Any = unwrap(encoder.backbone)
    backbone.set_input_size(img_size=size)
    replaced = {}
    for name, parameter in encoder.named_parameters():
        old = before[name]
        if parameter is not old:
            replaced[name] = (old, parameter.requires_grad_(old.requires_grad))
    return replaced


def _is_matrix(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """True if a parameter is a matrix (or a kernel) that multiplies an input."""
    if name.endswith(".weight_g") or isinstance(module, ParametrizationList):
        return _is_parametrized_matrix(module, name, parameter)
    # "weights.0" of an `nn.ParameterList` goes by the name of the list.
    own_name = [part for part in name.split(".") if not part.isdigit()][-1:]
    is_weight = any(part.startswith("weight") or part.endswith("weight") for part in own_name)
    return is_weight and parameter.dim() >= 2 and not isinstance(module, _NORMS_AND_EMBEDDINGS)


def _is_parametrized_matrix(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """True if it is the matrix behind a parametrized weight, and not the gain of weight norm.

    Names end in `parametrizations.weight.original0`, or `weight_g` with the old weight norm.
    """
    *_, owner, own_name = name.split(".")
    gain = own_name == "weight_g" or (own_name == "original0" and hasattr(module, "original1"))
    return owner.endswith("weight") and parameter.dim() >= 2 and not gain


def _matches(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _as_names(argument: str, patterns: Iterable[str]) -> tuple[str, ...]:
    is_collection = isinstance(patterns, Iterable) and not isinstance(patterns, str)
    names = tuple(patterns) if is_collection else ()
    if not is_collection or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{argument}={patterns!r}: must be a collection of names")
    return names
