"""Law 8: the losses over several real processes give the gradient of one big batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import jepakit

WORKER = Path(__file__).with_name("ddp_worker.py")


def _run_ranks(world_size: int, folder: Path, mode: str = "eager") -> None:
    source = str(Path(jepakit.__file__).parent.parent)
    paths = [source, os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(world_size), str(folder / "store"), mode],
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


@pytest.mark.slow
def test_ranks_give_the_gradient_of_one_batch(tmp_path: Path) -> None:
    """Three ranks, then a group of two of them, through DDP.

    Traps: mean of per-rank means; a rank with nothing valid; uneven batches; an ignored group.
    """
    _run_ranks(3, tmp_path)


@pytest.mark.slow
@pytest.mark.no_hook
def test_ranks_compiled(tmp_path: Path) -> None:
    """Law 14: the collective is part of the one graph."""
    _run_ranks(2, tmp_path, "compiled")
