"""`EMATeacher.update` once for each step of the optimiser, however the loop is built."""

import copy
import pickle
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from jepakit import EMATeacher

WARNING = "^EMATeacher.update: the student has gradients, and its parameters did not change since"
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.1),
    "adamw, for each": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, foreach=True),
    "adamw, fused": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, fused=True),
}
UNSEEN = ("adamw, fused",)  # whose steps leave the version counters as they are


class Run:
    """A student and its optimiser, with micro-batches."""

    def __init__(self, optimizer: str = "sgd") -> None:
        torch.manual_seed(0)
        self.student = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
        self.student[0].bias.requires_grad_(False)
        self.teacher = EMATeacher(self.student, 0.9)
        trained = [p for p in self.student.parameters() if p.requires_grad]
        self.optimizer = OPTIMIZERS[optimizer](trained)

    def micro_batches(self, number: int, *, accumulate: int) -> Iterator[int]:
        """Yields after each backward and, if it ends a window, after the step of the optimiser."""
        for count in range(1, number + 1):
            self.student(torch.randn(4, 3)).square().mean().backward()
            if count % accumulate == 0:
                self.optimizer.step()
            yield count
            if count % accumulate == 0:
                self.optimizer.zero_grad()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_update_for_each_micro_batch_is_noticed_once(optimizer) -> None:
    """Trap: a hook after each micro-batch: 16 updates for 4 steps of the optimiser."""
    run = Run(optimizer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in run.micro_batches(16, accumulate=4):
            run.teacher.update(run.student)
    assert run.teacher.step == 16
    assert len(caught) == (optimizer not in UNSEEN)
    if caught:
        assert str(caught[0].message).startswith(WARNING[1:])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("accumulate", [1, 4])
def test_an_update_for_each_step_is_not_warned_of(optimizer, accumulate) -> None:
    run = Run(optimizer)
    for count in run.micro_batches(16, accumulate=accumulate):
        if count % accumulate == 0:
            run.teacher.update(run.student)
    assert run.teacher.step == 16 // accumulate


def test_updates_without_gradients_are_not_warned_of() -> None:
    """After `zero_grad`, or with no optimiser at all, nothing says that a step is to come."""
    run = Run()
    for _ in run.micro_batches(4, accumulate=1):
        run.teacher.update(run.student)  # so that version counters are seen to change
    for _ in range(4):
        run.teacher.update(run.student)


def test_copies_notice_it_too() -> None:
    run = Run()
    for _ in run.micro_batches(2, accumulate=1):
        run.teacher.update(run.student)
    run.teacher = pickle.loads(pickle.dumps(copy.deepcopy(run.teacher)))
    next(run.micro_batches(1, accumulate=4))
    with pytest.warns(UserWarning, match=WARNING):
        run.teacher.update(run.student)


def test_a_hook_of_the_optimiser_updates_once_for_each_step() -> None:
    """What the pages recommend for trainers, which have no hook of their own for it."""
    run = Run()
    run.optimizer.register_step_post_hook(lambda *_: run.teacher.update(run.student))
    for _ in run.micro_batches(16, accumulate=4):
        pass
    assert run.teacher.step == 4


@pytest.mark.slow  # to import lightning takes seconds
@pytest.mark.filterwarnings("ignore")
def test_lightning_updates_once_for_each_step(tmp_path) -> None:
    """Traps: 16 updates for 4 steps; a hook that is lost where the trainer wraps the optimiser."""
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.student = nn.Linear(3, 1)
            self.teacher = EMATeacher(self.student, 0.9)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            optimizer = torch.optim.AdamW(self.student.parameters(), lr=0.1)
            optimizer.register_step_post_hook(lambda *_: self.teacher.update(self.student))
            return optimizer

        def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
            return self.student(batch).square().mean()

    module = Module()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        accumulate_grad_batches=4,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, torch.utils.data.DataLoader(torch.randn(32, 3), batch_size=2))
    assert trainer.global_step == module.teacher.step == 4
