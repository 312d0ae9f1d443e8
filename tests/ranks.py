"""Real processes for tests of distributed training: one worker script, run once for each rank."""

import os
import subprocess
import sys
from pathlib import Path

import jepakit


def run_ranks(worker: Path, world_size: int, folder: Path, *arguments: str) -> None:
    """Run `worker RANK WORLD_SIZE STORE *arguments` for every rank; all must end well."""
    source = str(Path(jepakit.__file__).parent.parent)
    paths = [source, os.environ.get("PYTHONPATH", "")]
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
