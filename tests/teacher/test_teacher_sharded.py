"""Law 9 with FSDP2: a sharded teacher is the unsharded one, over several real processes."""

from pathlib import Path

import pytest
import torch
from tests.ranks import run_ranks

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
    run_ranks(WORKER, world_size, tmp_path)
