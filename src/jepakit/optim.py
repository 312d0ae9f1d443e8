"""Groups of parameters for an optimiser: what is decayed, and what is not."""

from collections.abc import Collection, Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from jepakit._checks import check_number, type_name

__all__ = ["param_groups"]

# What multiplies nothing, though its parameter is called a weight.
_NOT_MATRICES = (
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
    """Parameters with weight decay and those without, for any optimiser of PyTorch's kind.

    Decayed is what multiplies an input: parameters of at least two axes that are called a weight
    (`weight`, `in_proj_weight` ...), in anything but a norm or an embedding. Everything else is
    not: norms, biases, positions, class, register and mask tokens, queries, relative position
    tables, temperatures, learned weights of losses (numbers and vectors); nor what a module names
    in timm's convention, `no_weight_decay()`, however deep it lies in the model.

    Parameters that need no gradient are left out, and one that is shared comes once; it is decayed
    if it is under all of its names. A group without parameters is left out.

    Args:
        model: What is trained. Several modules go into an `nn.ModuleDict`, losses with parameters
            too: an adaptive weight that no optimiser knows never moves.
        weight_decay: Of the first group, not below 0; the second has 0.
        decay: Full names of further parameters to decay, such as matrices that a module holds
            itself under another name; `*` stands for anything.
        no_decay: Names of parameters not to decay; it wins over `decay`.

    Raises:
        TypeError: If `model` is not a module, or names are not a collection of strings.
        ValueError: If `weight_decay` is negative, a name matches no parameter, or the model has
            none to train.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from jepakit import MaskedPredictor
        >>> from jepakit.losses import LearnableTemperature
        >>> from jepakit.optim import param_groups
        >>> predictor = MaskedPredictor((4, 4), 64, predictor_embed_dim=32, depth=1, num_heads=2)
        >>> model = nn.ModuleDict({"predictor": predictor, "temperature": LearnableTemperature()})
        >>> groups = param_groups(model, 0.05)
        >>> [(len(group["params"]), group["weight_decay"]) for group in groups]
        [(6, 0.05), (14, 0.0)]
        >>> optimizer = torch.optim.AdamW(groups, lr=1e-3)

    Source:
        jepakit's own, after timm's `param_groups_weight_decay`. That excludes biases, what has one
        axis, and the names it is given: of the names that a backbone lists it finds none within a
        wrapper such as `MaskedViT`, and it decays mask tokens and what else has more axes and no
        list.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model: must be a torch.nn.Module, got {type_name(model)}; put several into an "
            "nn.ModuleDict"
        )
    check_number("weight_decay", weight_decay, minimum=0)
    # A generator would be used up by the checks and match nothing afterwards.
    decay, no_decay = _names("decay", decay), _names("no_decay", no_decay)
    names = [
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.requires_grad
    ]
    for argument, patterns in (("decay", decay), ("no_decay", no_decay)):
        _check_patterns(argument, patterns, names)
    listed = set(_listed(model))
    parameters: dict[int, nn.Parameter] = {}
    decayed: dict[int, bool] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for own, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if not parameter.requires_grad:
                continue
            name = f"{prefix}.{own}" if prefix else own
            yes = _multiplies(module, name, parameter) and not _matches(name, listed)
            yes = (yes or _matches(name, decay)) and not _matches(name, no_decay)
            parameters[id(parameter)] = parameter
            decayed[id(parameter)] = yes and decayed.get(id(parameter), True)
    if not parameters:
        raise ValueError("model: has no parameter that needs a gradient")
    groups = []
    for value, chosen in ((weight_decay, True), (0.0, False)):
        members = [parameters[key] for key, yes in decayed.items() if yes == chosen]
        if members:
            groups.append({"params": members, "weight_decay": value})
    return groups


def _multiplies(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    if name.endswith(".weight_g") or isinstance(module, ParametrizationList):
        return _is_parametrized_matrix(module, name, parameter)
    # Of an `nn.ParameterList`, the name of the list.
    own = [part for part in name.split(".") if not part.isdigit()][-1:]
    called = any(part.startswith("weight") or part.endswith("weight") for part in own)
    return called and parameter.dim() >= 2 and not isinstance(module, _NOT_MATRICES)


def _is_parametrized_matrix(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Whether it is the matrix behind a parametrized weight, and not its gain (weight norm's)."""
    *_, of, own = name.split(".")
    gain = own == "weight_g" or (own == "original0" and hasattr(module, "original1"))
    return of.endswith("weight") and parameter.dim() >= 2 and not gain


def _listed(model: nn.Module) -> Iterator[str]:
    """Full names from every `no_weight_decay()` in the model."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        names = getattr(module, "no_weight_decay", None)
        if callable(names):
            for name in names():
                yield f"{prefix}.{name}" if prefix else name


def _matches(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _names(argument: str, patterns: Iterable[str]) -> tuple[str, ...]:
    if isinstance(patterns, str):
        raise TypeError(f"{argument}={patterns!r}: must be a collection of names")
    names = tuple(patterns)
    if not all(isinstance(each, str) for each in names):
        raise TypeError(f"{argument}={patterns!r}: must be a collection of names")
    return names


def _check_patterns(argument: str, patterns: Collection[str], names: list[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"{argument}: {pattern!r} matches no parameter that is trained")
