"""Law 8: the losses over several real processes give the gradient of one big batch."""

from pathlib import Path

import pytest
from tests.ranks import run_ranks

WORKER = Path(__file__).with_name("masked_worker.py")


@pytest.mark.slow
def test_ranks_give_the_gradient_of_one_batch(tmp_path: Path) -> None:
    """Three ranks, then a group of two of them, through DDP.

    Traps: mean of per-rank means; a rank with nothing valid; uneven batches; an ignored group.
    """
    run_ranks(WORKER, 3, tmp_path, "eager")


@pytest.mark.slow
@pytest.mark.no_hook
def test_ranks_compiled(tmp_path: Path) -> None:
    """Law 14: the collective is part of the one graph."""
    run_ranks(WORKER, 2, tmp_path, "compiled")
