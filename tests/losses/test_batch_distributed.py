"""Law 8 for losses over a whole batch: ranks give value and gradient of the joined batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import jepakit

WORKER = Path(__file__).with_name("batch_worker.py")


@pytest.mark.slow
def test_ranks_give_the_gradient_of_the_joined_batch(tmp_path: Path) -> None:
    """Three ranks, then a group of two of them, through DDP, with uneven and empty batches.

    Traps: statistics per rank; all_reduce without gradient; slices that differ between ranks.
    """
    source = str(Path(jepakit.__file__).parent.parent)
    paths = [source, os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), "3", str(tmp_path / "store")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(3)
    ]
    try:
        outputs = [rank.communicate(timeout=300)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for number, (rank, output) in enumerate(zip(ranks, outputs, strict=True)):
        assert rank.returncode == 0, f"rank {number} of 3:\n{output}"
