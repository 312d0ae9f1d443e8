"""Interleaved timing: a machine that is slow for a while slows all calls alike."""

import os
import time
from collections.abc import Callable, Mapping

import torch


def seconds(
    call: Callable[[], object],
    device: torch.device,
    repeats: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Mean time of a call over `repeats` calls in a row."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    start = clock()
    for _ in range(repeats):
        call()
    synchronize()
    return (clock() - start) / repeats


def in_turns(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    *,
    repeats: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each call in each round; every other round runs in reverse order.

    With one thread `clock=time.process_time` leaves out the time that other processes take.
    """
    if os.environ.get("JEPAKIT_TYPECHECK") == "1":
        raise SystemExit("JEPAKIT_TYPECHECK=1 slows every call: unset it")
    for call in calls.values():
        call()  # warm-up
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in list(calls) if number % 2 else reversed(list(calls)):
            times[name].append(seconds(calls[name], device, repeats, clock))
    return times
