"""Ranks of examples/pretrain.py, forked from a process that has imported torch already.

Each is a session of its own, so that `kill` ends it with the workers of its loader, and computes
in float64: AdamW amplifies rounding, and the order of sums depends on the number of ranks.
"""

import contextlib
import multiprocessing
import os
import runpy
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples/pretrain.py"


@dataclass
class Ranks:
    processes: list[multiprocessing.Process]
    log: Path

    def kill(self) -> None:
        """`kill -9` of all ranks and their workers."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in self.processes:
            process.join()

    @property
    def ended(self) -> bool:
        return any(process.exitcode is not None for process in self.processes)

    def wait(self, code: int = 0) -> str:
        """What was printed; every rank must end with this code."""
        try:
            for process in self.processes:
                process.join(timeout=90)
            codes = [process.exitcode for process in self.processes]
        finally:
            self.kill()
        printed = self.log.read_text()
        assert codes == [code] * len(codes), f"{codes}\n{printed}"
        return printed


def start(count: int, log: Path, *options: str) -> Ranks:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.examples.pretrain_imports"])
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    processes = [
        context.Process(target=_run, args=(rank, count, port, log, options))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    return Ranks(processes, log)


def run(count: int, log: Path, *options: str) -> str:
    return start(count, log, *options).wait()


def _run(rank: int, count: int, port: int, log: Path, options: tuple[str, ...]) -> None:
    os.setsid()
    # Children of a fork server start more of them, which import everything anew.
    multiprocessing.set_start_method("fork", force=True)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import torch

    from jepakit.data import PixelStatistics

    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    standardise = PixelStatistics.__call__
    PixelStatistics.__call__ = lambda self, images: standardise(self, images).double()
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    sys.argv = [str(EXAMPLE), *options]
    runpy.run_path(str(EXAMPLE), run_name="__main__")
