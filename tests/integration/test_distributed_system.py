"""Law 8 from pixels to teacher: two real processes train as one big batch does."""

import os
import subprocess
import sys
from pathlib import Path

import jepakit

WORKER = Path(__file__).with_name("system_worker.py")


def test_two_ranks_train_as_one_batch(tmp_path: Path) -> None:
    """Traps: a mean of per-rank means over ragged sets; a teacher that does not see through DDP;
    an unused parameter, at which DDP's second step stops."""
    source = str(Path(jepakit.__file__).parent.parent)
    paths = [source, os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), "2", str(tmp_path / "store")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=300)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for number, (rank, output) in enumerate(zip(ranks, outputs, strict=True)):
        assert rank.returncode == 0, f"rank {number}:\n{output}"
