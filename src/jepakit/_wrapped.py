"""Modules as they are found: wrapped by DDP, `torch.compile` or FSDP2, in train or eval mode."""

import re
import sys
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module within DDP, `DataParallel`, `torch.compile` and Fabric, in any order.

    A module whose activations are checkpointed stays wrapped: it has the same names.
    """
    while True:
        inner = getattr(module, "_orig_mod", None)  # torch.compile
        if inner is None:
            inner = getattr(module, "_forward_module", None)  # Lightning's Fabric
        if inner is None and isinstance(
            module, (nn.parallel.DistributedDataParallel, nn.DataParallel)
        ):
            inner = module.module
        if inner is None:
            return module
        module = inner


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Set a module to eval mode, and every submodule back to its own mode afterwards."""
    # One mode per submodule: a frozen part may be in eval mode inside a training model.
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


_PREFIXES = re.compile("(_orig_mod|_forward_module|_checkpoint_wrapped_module)[.]")


def clean_names(named: Iterable[tuple[str, Tensor]]) -> dict[str, Any]:
    """Return tensors by name, without the parts that wrapped submodules add to a name."""
    return {_PREFIXES.sub("", name): tensor for name, tensor in named}


def name_difference(expected: Set[Any], actual: Set[Any]) -> str:
    """Describe which names are missing and extra, for an error message; empty if none is."""
    missing, extra = sorted(expected - actual), sorted(actual - expected)
    if not missing and not extra:
        return ""
    return (
        f"lacks {missing[:5] or 'none'} and adds {extra[:5] or 'none'} "
        f"({len(missing)} missing, {len(extra)} extra)"
    )


def loaded_type(module: str, name: str) -> tuple[type, ...]:
    """Return a class of `torch.distributed` for `isinstance`; empty if it cannot be in use."""
    # Without a process group nothing is sharded, and instances exist only of what is imported.
    # To import it here would take most of a second.
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return ()
    found = getattr(sys.modules.get(module), name, None)
    return () if found is None else (found,)


def fsdp_parts(module: nn.Module) -> list[Any]:
    """Return the submodules that `fully_shard` was called on, the module itself included."""
    types = loaded_type("torch.distributed.fsdp", "FSDPModule")
    return [part for part in module.modules() if isinstance(part, types)] if types else []
