"""Law 8 from pixels to teacher: two real processes train as one big batch does."""

from pathlib import Path

from tests.ranks import run_ranks

WORKER = Path(__file__).with_name("system_worker.py")
LEVELS_WORKER = Path(__file__).with_name("levels_worker.py")


def test_two_ranks_train_as_one_batch(tmp_path: Path) -> None:
    """Traps: a mean of per-rank means over ragged sets; a teacher that does not see through DDP;
    an unused parameter, at which DDP's second step stops."""
    run_ranks(WORKER, 2, tmp_path)


def test_two_ranks_train_a_hierarchy_as_one_batch(tmp_path: Path) -> None:
    """The same with a pyramid and one predictor for its levels, which DDP sees called once for each
    before the backward."""
    run_ranks(LEVELS_WORKER, 2, tmp_path)
