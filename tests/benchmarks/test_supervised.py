"""benchmarks/supervised.py scores the model that it trained."""

import json
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Images of one of four greys with noise; the last class is absent from the test images."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, classes in (("train", 4), ("test", 3)):
        labels = np.arange(120) % classes
        noise = rng.normal(0, 10, (120, 16, 16, 3))
        arrays[f"x_{part}"] = np.clip(40 + 60 * labels[:, None, None, None] + noise, 0, 255)
        arrays[f"x_{part}"] = arrays[f"x_{part}"].astype(np.uint8)
        arrays[f"y_{part}"] = labels
    path = tmp_path / "greys.npz"
    np.savez(path, **arrays)
    return path


def test_the_trained_row_is_the_trained_model(data: Path, run_script, tmp_path: Path) -> None:
    """Traps: a row of the untrained encoder; a head with as many classes as the test images."""

    def result(lr: float) -> dict:
        run_script(
            "supervised", "--data", data, "--standardise", "dataset", "--patch-size", 4,
            "--width", 32, "--depth", 1, "--steps", 40, "--batch-size", 16, "--lr", lr,
            "--eval-images", 100, "--device", "cpu", "--out", tmp_path / str(lr),
        )  # fmt: skip
        return json.loads((tmp_path / str(lr) / "result.json").read_text())

    still, trained = result(0.0), result(3e-3)
    assert still["rows"]["trained encoder"] == still["rows"]["untrained encoder"]
    assert trained["rows"]["trained encoder"] != trained["rows"]["untrained encoder"]
    assert trained["rows"]["untrained encoder"] == still["rows"]["untrained encoder"]
    assert trained["head"] > 0.9 > 0.7 > still["head"]
