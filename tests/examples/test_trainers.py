"""examples/trainers: Fabric, Lightning and Accelerate, killed, resumed and on two processes."""

import functools
import random
import runpy
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.examples.trainer_ranks import TRAINERS, run, start
from torch import nn
from torch.utils.data import DataLoader

import jepakit
from jepakit import IndexedDataset, MaskCollator, MultiBlockMask
from jepakit.data import ResumableBatches, textured_shapes

pytest.importorskip("lightning")
pytest.importorskip("accelerate")

pytestmark = pytest.mark.slow

SCRIPTS = {
    "fabric": TRAINERS / "fabric_loop.py",
    "lightning": TRAINERS / "lightning_module.py",
    "accelerate": TRAINERS / "accelerate_loop.py",
}
SIZE, BATCH_SIZE, STEPS, SAVE_EVERY = 100, 8, 30, 5  # no checkpoint is at the end of a pass
TINY = ["--batch-size", str(BATCH_SIZE), "--steps", str(STEPS), "--save-every", str(SAVE_EVERY)]
every_trainer = pytest.mark.parametrize("trainer", SCRIPTS)


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """As a user runs it, and on one thread, so that sums have one order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JEPAKIT_TYPECHECK", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


def save_textures(path: Path, size: int) -> str:
    arrays = {}
    for part, images in zip(("train", "test"), textured_shapes(size, 10), strict=True):
        arrays[f"x_{part}"], arrays[f"y_{part}"] = (x.numpy() for x in images.tensors)
        arrays[f"x_{part}"] = arrays[f"x_{part}"].transpose(0, 2, 3, 1)
    np.savez(path, **arrays)
    return str(path)


@pytest.fixture(scope="module")
def textures(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_textures(tmp_path_factory.mktemp("textures") / "textures.npz", SIZE)


class State:
    """Student, teacher and optimiser of the last checkpoint of a run."""

    def __init__(self, out: Path) -> None:
        if (out / "last.ckpt").exists():
            saved = torch.load(out / "last.ckpt", weights_only=False)
            if "state_dict" in saved:  # Lightning's
                self.student, self.teacher = {}, {}
                for name, tensor in saved["state_dict"].items():
                    part, _, name = name.partition(".")
                    getattr(self, part)[name] = tensor
                optimizer = saved["optimizer_states"][0]
            else:
                self.student, self.teacher = saved["student"], saved["teacher"]
                optimizer = saved["optimizer"]
        else:
            from safetensors.torch import load_file

            (folder,) = out.glob("step-*")
            self.student = load_file(folder / "model.safetensors")
            self.teacher = torch.load(folder / "custom_checkpoint_0.pkl")
            optimizer = torch.load(folder / "optimizer.bin")
        self.moments = optimizer["state"]
        (self.step,) = {int(moments["step"]) for moments in self.moments.values()}


def assert_equal(ours: State, theirs: State, tolerance: float) -> None:
    for part in ("student", "teacher", "moments"):
        torch.testing.assert_close(
            getattr(ours, part), getattr(theirs, part), rtol=0, atol=tolerance
        )


@pytest.fixture(scope="module")
def reference(textures: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], State]:
    """The end of an uninterrupted run of one process, with two micro-batches in a step."""

    @functools.cache
    def run_once(trainer: str) -> State:
        out = tmp_path_factory.mktemp(trainer)
        options = ["--data", textures, "--out", str(out), *TINY, "--accumulate=2"]
        run(SCRIPTS[trainer], 1, out / "log", *options)
        return State(out)

    return run_once


@every_trainer
def test_one_update_for_each_step_of_the_optimiser(
    trainer: str, reference: Callable[[str], State]
) -> None:
    """Trap: an update for each micro-batch."""
    state = reference(trainer)
    assert state.step == STEPS
    assert state.teacher["_extra_state"]["step"] == STEPS


def saved_at(out: Path) -> float:
    """Time of the newest complete checkpoint, 0 if there is none."""
    paths = [*out.glob("last.ckpt"), *out.glob("step-*")]
    return max((path.stat().st_mtime_ns for path in paths), default=0)


def wait_for_checkpoint(out: Path, after: float, ranks: Any) -> None:
    end = time.monotonic() + 60
    while saved_at(out) == after and not ranks.ended and time.monotonic() < end:
        time.sleep(0.005)


@every_trainer
def test_killed_within_an_epoch_and_resumed(
    trainer: str, textures: str, reference: Callable[[str], State], tmp_path: Path
) -> None:
    """Traps: the trainer fetches before its hooks run; workers that are ahead; batches from the
    start of the epoch; a loader with the length of the rest, which ends the run early."""
    script, moments = SCRIPTS[trainer], random.Random(0)
    options = ["--data", textures, "--out", str(tmp_path), *TINY, "--accumulate=2", "--workers=1"]
    for _ in range(2):
        before = saved_at(tmp_path)
        ranks = start(script, 1, tmp_path / "log", *options)
        wait_for_checkpoint(tmp_path, before, ranks)
        time.sleep(moments.uniform(0, 0.1))
        assert not ranks.ended, "the run ended before it could be killed"
        ranks.kill()
        step = State(tmp_path).step
        assert 0 < step < STEPS and step % (SIZE // BATCH_SIZE), "within an epoch"
    run(script, 1, tmp_path / "log", *options)
    assert_equal(State(tmp_path), reference(trainer), 0)


@every_trainer
def test_two_processes_are_one(
    trainer: str, textures: str, reference: Callable[[str], State], tmp_path: Path
) -> None:
    """Traps: ranks with the same batches; batches that are divided twice; sizes of targets that
    differ between ranks."""
    # Fabric's loop divides by the targets of all micro-batches, so that their number is free.
    devices = {"fabric": ["--devices=2"], "lightning": ["--devices=2", "--accumulate=2"]}
    options = ["--data", textures, "--out", str(tmp_path), *TINY]
    options += devices.get(trainer, ["--accumulate=2"])
    run(SCRIPTS[trainer], 2, tmp_path / "log", *options)
    assert_equal(State(tmp_path), reference(trainer), 1e-5)


@every_trainer
def test_bfloat16_and_the_trainers_own_launcher(
    trainer: str, textures: str, tmp_path: Path
) -> None:
    launcher = ["-m", "accelerate.commands.launch", "--cpu", "--num-processes=2"]
    launcher, devices = (launcher, []) if trainer == "accelerate" else ([], ["--devices=2"])
    options = ["--data", textures, "--out", str(tmp_path), "--batch-size=8", "--steps=3"]
    done = subprocess.run(
        [sys.executable, *launcher, str(SCRIPTS[trainer]), *options, *devices, "--bf16"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    state = State(tmp_path)
    assert state.step == 3 and all(tensor.isfinite().all() for tensor in state.student.values())
    assert {tensor.dtype for tensor in state.student.values()} == {torch.float32}


@pytest.mark.filterwarnings("ignore")
@every_trainer
def test_two_epochs_have_different_masks(
    trainer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    class Recorded(MaskCollator):
        def __call__(self, samples: Any) -> Any:
            batch, masks = super().__call__(samples)
            for sample, mask in zip(samples, masks, strict=True):
                context = mask.context.to_mask()
                drawn.append(
                    (sample.epoch, sample.index, tuple(context.nonzero().flatten().tolist()))
                )
            return batch, masks

    monkeypatch.setattr(jepakit, "MaskCollator", Recorded)
    data = save_textures(tmp_path / "few.npz", 16)
    options = ["--data", data, "--out", str(tmp_path), "--batch-size=8", "--steps=4"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPTS[trainer]), *options])
    runpy.run_path(str(SCRIPTS[trainer]), run_name="__main__")
    passes = [{i: mask for epoch, i, mask in drawn if epoch == number} for number in range(2)]
    assert len(drawn) == 32 and all(sorted(each) == list(range(16)) for each in passes)
    assert sum(passes[0][i] == passes[1][i] for i in range(16)) <= 1


# Loaders that a user would write, in each trainer.


def iterate_twice(trainer: str, loader: DataLoader[Any], folder: Path) -> list[list[int]]:
    """Two epochs in a trainer, without a call of `set_epoch`; the masks' first patches."""
    seen: list[list[int]] = [[], []]
    if trainer == "lightning":
        import lightning

        class Module(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(1, 1)

            def training_step(self, batch: Any, index: int) -> torch.Tensor:
                seen[self.current_epoch] += batch[1].context.idx.flatten().tolist()
                return self.layer(torch.ones(1, 1)).sum()

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.SGD(self.parameters(), lr=0.1)

        quiet = dict.fromkeys(
            ["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False
        )
        lightning.Trainer(max_epochs=2, devices=1, default_root_dir=folder, **quiet).fit(
            Module(), loader
        )
        return seen
    if trainer == "fabric":
        from lightning.fabric import Fabric

        loader = Fabric(devices=1).setup_dataloaders(loader)
    else:
        from accelerate import Accelerator

        loader = Accelerator(cpu=True).prepare(loader)
    for epoch in range(2):
        for _, masks in loader:
            seen[epoch] += masks.context.idx.flatten().tolist()
    return seen


def loader_of(**options: Any) -> DataLoader[Any]:
    dataset = IndexedDataset(torch.zeros(8, 3, 4, 4))
    return DataLoader(dataset, collate_fn=MaskCollator(MultiBlockMask((8, 8))), **options)


@pytest.mark.filterwarnings("ignore")
@every_trainer
def test_a_forgotten_epoch_warns(trainer: str, tmp_path: Path) -> None:
    """Trap: the same masks again in every epoch, silently."""
    with pytest.warns(UserWarning, match="drawn twice at epoch 0, with the same masks"):
        iterate_twice(trainer, loader_of(batch_size=4, shuffle=True), tmp_path)


@pytest.mark.filterwarnings("ignore")
@every_trainer
def test_passes_one_by_one(trainer: str, tmp_path: Path) -> None:
    """Accelerate sets the epoch of `ResumableBatches` itself; Lightning and Fabric do not."""
    loader = loader_of(batch_sampler=ResumableBatches(8, 4, seed=0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seen = iterate_twice(trainer, loader, tmp_path)
    repeated = [each for each in caught if "epoch 0 begins again" in str(each.message)]
    assert (seen[0] == seen[1]) == bool(repeated) == (trainer != "accelerate")


# Sharding twice.


def ranks_of(number: int) -> list[ResumableBatches]:
    return [ResumableBatches(64, 4, seed=0, rank=r, world_size=number) for r in range(number)]


def test_what_accelerate_would_do_with_a_prepared_loader() -> None:
    """Half of the data are never seen. The scripts and the page do not prepare it."""
    from accelerate.data_loader import prepare_data_loader

    def seen(num_processes: int) -> list[int]:
        loaders = [
            prepare_data_loader(
                DataLoader(range(64), batch_sampler=batches),
                num_processes=num_processes,
                process_index=batches.rank if num_processes > 1 else 0,
            )
            for batches in ranks_of(2)
        ]
        return sorted(int(index) for loader in loaders for batch in loader for index in batch)

    assert len(set(seen(2))) == 32
    assert seen(1) == list(range(64)), "the way of the page"


@pytest.mark.parametrize("case", ["replaced", "dispatched"])
def test_loaders_that_a_trainer_divides(case: str, tmp_path: Path) -> None:
    """Traps: half of the data are never seen; `dispatch_batches` stops at `Masks`."""
    run(Path(__file__).with_name("sharding_worker.py"), 2, tmp_path / "log", case)
