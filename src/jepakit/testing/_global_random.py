"""Global random states, which a pure function of its generator neither reads nor advances."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from jepakit._checks import TYPECHECK


def _numpy_if_imported() -> Any:
    # Code that draws from NumPy has imported it; the contracts themselves do not need it.
    return sys.modules.get("numpy")


@contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Seed the global generators of torch (CPU), Python and NumPy; restore their states after."""
    numpy = _numpy_if_imported()
    before = torch.get_rng_state(), random.getstate(), numpy and numpy.random.get_state()
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    if numpy:
        numpy.random.seed(seed % 2**32)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        random.setstate(before[1])
        if numpy:
            numpy.random.set_state(before[2])


def global_states() -> dict[str, Any]:
    """The state of every global generator, comparable by `==`."""
    numpy = _numpy_if_imported()
    states: dict[str, Any] = {"torch": torch.get_rng_state().tolist()}
    if not TYPECHECK:  # beartype itself draws from `random`
        states["random"] = random.getstate()
    if numpy:
        name, keys, *rest = numpy.random.get_state()
        states["numpy.random"] = (name, keys.tolist(), *rest)
    return states
