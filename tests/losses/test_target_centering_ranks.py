"""Law 8 for `TargetCentering`: ranks have the statistics of the joined batch, also inside DDP."""

from pathlib import Path

import pytest
from tests.ranks import run_ranks

WORKER = Path(__file__).with_name("centering_worker.py")


@pytest.mark.slow
def test_ranks_centre_as_one_process(tmp_path: Path) -> None:
    """Three ranks, then a group of two of them, with uneven and empty batches.

    Traps: a mean of the ranks' means; a deviation around a rank's own mean.
    """
    run_ranks(WORKER, 3, tmp_path)
