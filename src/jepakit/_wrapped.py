"""Wrappers that change a module's names or tensors: DDP, `torch.compile`, FSDP2."""

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["clean_names", "fsdp_parts", "loaded_type", "unwrap"]


def unwrap(module: nn.Module) -> nn.Module:
    """The module within DDP, `DataParallel` and `torch.compile`, however they are nested."""
    while True:
        inner = getattr(module, "_orig_mod", None)  # torch.compile
        if inner is None and isinstance(
            module, nn.parallel.DistributedDataParallel | nn.DataParallel
        ):
            inner = module.module
        if inner is None:
            return module
        module = inner


def clean_names(named: Iterable[tuple[str, Tensor]]) -> dict[str, Any]:
    """Tensors under their names, without what a compiled submodule puts in the middle of one."""
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in named}


def loaded_type(module: str, name: str) -> tuple[type, ...]:
    """A class of `torch.distributed`, for `isinstance`; empty where nobody can be using it."""
    # Without a process group nothing is sharded. And what nobody has imported nobody uses; to
    # import it here would cost most of a second.
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return ()
    found = getattr(sys.modules.get(module), name, None)
    return () if found is None else (found,)


def fsdp_parts(module: nn.Module) -> list[Any]:
    """The submodules that `fully_shard` was called on, and the module itself if it was."""
    kinds = loaded_type("torch.distributed.fsdp", "FSDPModule")
    return [part for part in module.modules() if isinstance(part, kinds)] if kinds else []
