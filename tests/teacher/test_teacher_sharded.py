"""Law 9 with FSDP2: a sharded teacher is the unsharded one, over several real processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import jepakit

WORKER = Path(__file__).with_name("fsdp_worker.py")


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"),
    reason="FSDP2 of this torch has no forward on the CPU",
)
@pytest.mark.parametrize("world_size", [1, 2])
def test_ranks_equal_the_unsharded_run(world_size: int, tmp_path: Path) -> None:
    """Traps: after a forward without gradient the root is whole, and an update is lost in silence;
    a student sharded alone; a copy made after the sharding; a resumed run."""
    source = str(Path(jepakit.__file__).parent.parent)
    paths = [source, os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(world_size), str(tmp_path / "store")],
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
