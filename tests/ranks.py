"""Real processes for tests of distributed training: one worker script, run once for each rank."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import jepakit


def run_ranks(worker: Path, world_size: int, folder: Path, *arguments: str) -> None:
    """Run `worker RANK WORLD_SIZE STORE *arguments` for every rank; all must end well."""
    source, root = Path(jepakit.__file__).parents[1], Path(__file__).parents[1]
    paths = [str(source), str(root), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    ranks = [
        subprocess.Popen(
            [
                sys.executable,
                str(worker),
                str(rank),
                str(world_size),
                str(folder / "store"),
                *arguments,
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        outputs = [rank.communicate(timeout=300)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for number, (rank, output) in enumerate(zip(ranks, outputs, strict=True)):
        assert rank.returncode == 0, f"rank {number} of {world_size}:\n{output}"


@contextmanager
def joined() -> Iterator[tuple[int, int]]:
    """Join the group of a worker's process; the process ends where the block does."""
    rank, world_size = int(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{sys.argv[3]}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=60),
    )
    yield rank, world_size
    # All ranks are done here. gloo's threads now and then abort a process that tears them down, so
    # it ends without that.
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)
