"""Ranks of a script, as torchrun starts them, in float64 (`pretrain_ranks.py` says why)."""

import multiprocessing
import os
import runpy
import socket
import sys
import warnings
from pathlib import Path

from tests.examples.pretrain_ranks import Ranks

TRAINERS = Path(__file__).parents[2] / "examples/trainers"


def start(script: Path, count: int, log: Path, *options: str) -> Ranks:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.examples.trainer_imports"])
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    processes = [
        context.Process(target=_run, args=(script, rank, count, port, log, options))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    return Ranks(processes, log)


def run(script: Path, count: int, log: Path, *options: str) -> str:
    return start(script, count, log, *options).wait()


def _run(
    script: Path, rank: int, count: int, port: int, log: Path, options: tuple[str, ...]
) -> None:
    os.setsid()
    # Children of a fork server start more of them, which import everything anew.
    multiprocessing.set_start_method("fork", force=True)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import torch

    from jepakit.data import PixelStatistics

    warnings.simplefilter("ignore")  # of the trainers
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    standardise = PixelStatistics.__call__
    PixelStatistics.__call__ = lambda self, images: standardise(self, images).double()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # Where there is no GPU, Accelerate joins no group without this: each process would train alone.
    os.environ["ACCELERATE_USE_CPU"] = "1"
    if count > 1:
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": 0}
        numbers |= {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
        os.environ |= {name: str(number) for name, number in numbers.items()}
        os.environ["MASTER_ADDR"] = "localhost"
    sys.argv = [str(script), *options]
    runpy.run_path(str(script), run_name="__main__")
