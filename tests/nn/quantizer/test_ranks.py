"""Law 8 for the quantizer: ranks give value, gradient and codebook of the joined batch."""

from pathlib import Path

import pytest
from tests.ranks import run_ranks

WORKER = Path(__file__).with_name("quantizer_worker.py")


@pytest.mark.slow
def test_ranks_give_the_codebook_of_the_joined_batch(tmp_path: Path) -> None:
    """Three ranks, then a group of two of them, through DDP, with uneven and empty batches.

    Traps: a start or a refresh that differs by rank; votes of one rank; a mean of ranks' means.
    """
    run_ranks(WORKER, 3, tmp_path)
