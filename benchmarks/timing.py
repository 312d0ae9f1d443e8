"""Calls timed in turns: a machine that slows down for a while slows all of them."""

import os
import time
from collections.abc import Callable, Mapping

import torch


def seconds(call: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """Of one call, over so many without a pause."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    wait()
    return (time.perf_counter() - began) / repeats


def in_turns(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    *,
    repeats: int = 1,
) -> dict[str, list[float]]:
    """Seconds of each call in each round; every other round goes backwards."""
    if os.environ.get("JEPAKIT_TYPECHECK") == "1":
        raise SystemExit("JEPAKIT_TYPECHECK=1 would be timed, too: unset it")
    for call in calls.values():
        call()  # the first one of all takes longer
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in list(calls) if number % 2 else reversed(list(calls)):
            found[name].append(seconds(calls[name], device, repeats))
    return found
