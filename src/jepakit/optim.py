"""Parameter groups for an optimiser: with and without weight decay."""

from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from jepakit._checks import as_number, type_name

__all__ = ["param_groups"]

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
