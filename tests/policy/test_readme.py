"""The README's loop is code, not a picture of code: it runs as it stands there."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def blocks(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_loop_runs():
    loop, in_workers = blocks(ROOT / "README.md")
    scope = {"loader": list(torch.rand(2, 2, 3, 224, 224)), "total_steps": 2}
    exec(compile(loop, "README.md", "exec"), scope)
    assert torch.isfinite(scope["loss"])
    assert scope["teacher"].step == 2
    scope |= {"dataset": torch.rand(5, 3, 8, 8), "num_epochs": 1}
    exec(compile(in_workers.replace("num_workers=4", "num_workers=1"), "README.md", "exec"), scope)
    assert len(scope["images"]) == len(scope["masks"]) == 5


def test_links_point_somewhere():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
