"""Shared by all tests: the type-checking hook, seeds, hypothesis, the optional data folder."""

import os

# The hook is installed when jepakit is imported, so this stands before everything else.
os.environ.setdefault("JEPAKIT_TYPECHECK", "1")

from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
import torch.distributed as dist

# Test processes run side by side; threads that wait for each other make them many times slower.
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent
HOOK = os.environ["JEPAKIT_TYPECHECK"] == "1"


class _TorchRandom:
    """torch's global generator as hypothesis wants one: every example starts from one seed."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


# Without this a failing example would be replayed with other random tensors ("flaky"). It also
# means that a test which wants variety in its tensors draws a seed from hypothesis.
_TORCH_RANDOM = _TorchRandom()  # hypothesis keeps a weak reference only
hypothesis.register_random(_TORCH_RANDOM)

hypothesis.settings.register_profile(
    "jepakit",
    deadline=None,
    max_examples=50,
    print_blob=True,
    derandomize=os.environ.get("CI", "").lower() in {"1", "true"},
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("jepakit")


def pytest_report_header() -> str:
    return f"jepakit: type-checking hook {'on' if HOOK else 'off'}, torch {torch.__version__}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not HOOK:
        return
    skip = pytest.mark.skip(reason="runs without the hook: JEPAKIT_TYPECHECK=0 pytest -m no_hook")
    for item in items:
        if item.get_closest_marker("no_hook"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """A function `name -> path` into the optional data folder; skips the test where it is absent.

    The folder is `$JEPAKIT_DATA`, or `../shared/data` beside the repository.
    """
    folder = Path(os.environ.get("JEPAKIT_DATA", ROOT.parent / "shared" / "data"))

    def find(name: str) -> Path:
        path = folder / name
        if not path.is_file():
            pytest.skip(f"optional data: no {name} in JEPAKIT_DATA or ../shared/data")
        return path

    return find


# Destroyed groups, never freed. In torch 2.6 a group that is freed right after a sum can hang: its
# thread waits for the GIL to free the summed tensor, while the destructor, which holds the GIL,
# waits for the thread.
_GROUPS: list[object] = []


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone, as wrappers want one."""
    dist.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    _GROUPS.append(dist.group.WORLD)
    yield
    dist.destroy_process_group()
