"""Law 8 for losses over a whole batch: ranks give value and gradient of the joined batch."""

from pathlib import Path

import pytest
from tests.ranks import run_ranks

WORKER = Path(__file__).with_name("batch_worker.py")


@pytest.mark.slow
def test_ranks_give_the_gradient_of_the_joined_batch(tmp_path: Path) -> None:
    """Three ranks, then a group of two of them, through DDP, with uneven and empty batches.

    Traps: statistics per rank; all_reduce without gradient; slices that differ between ranks.
    """
    run_ranks(WORKER, 3, tmp_path)
