"""Law 8 over whole runs: 1, 2 and 4 processes see the same and train to the same weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.ranks import run_ranks

WORKER = Path(__file__).with_name("scaling_worker.py")
STEPS, BATCH = 20, 8

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not hasattr(torch.cpu.Stream, "record_event"),
        reason="FSDP2 of this torch has no forward on the CPU",
    ),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """Of 1, 2 and 4 ranks."""
    found = {}
    for world_size in (1, 2, 4):
        folder = tmp_path_factory.mktemp(f"ranks{world_size}")
        run_ranks(WORKER, world_size, folder, str(folder))
        found[world_size] = torch.load(folder / f"{world_size}.pt", weights_only=True)
    return found


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("engine", ["DDP", "FSDP2"])
@pytest.mark.parametrize("objective", ["IJEPA", "HJEPA", "LeJEPA"])
def test_any_number_of_ranks_trains_to_the_weights_of_one(
    objective: str, engine: str, world_size: int, results: dict[int, dict[str, Any]]
) -> None:
    """20 steps of AdamW in float64. Traps: batches, crops or masks that depend on the rank; a mean
    of per-rank means; a teacher that stops following under FSDP2."""
    ours, one = results[world_size][f"{objective} {engine}"], results[1][f"{objective} DDP"]
    assert ours["sizes"] == [BATCH // world_size] * world_size
    assert len(ours["batches"]) == STEPS
    for batch, expected in zip(ours["batches"], one["batches"], strict=True):
        assert batch.keys() == expected.keys() and len(batch) == BATCH
        for index, tensors in batch.items():  # the image, its context and its targets
            assert all(map(torch.equal, tensors, expected[index]))
    for part in ("student", "teacher"):
        torch.testing.assert_close(ours[part], one[part], rtol=0, atol=1e-5)
    moved = max((one["student"][k] - v).abs().max() for k, v in one["teacher"].items())
    assert moved > 1e-3, "nothing was learned that the teacher lags behind"
