"""Two ranks with loaders that a trainer divides: Accelerate's dispatcher, Lightning's sampler."""

import sys
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from lightning import LightningModule, Trainer
from lightning.fabric import Fabric
from torch.utils.data import DataLoader

from jepakit import IndexedDataset, MaskCollator, Masks, MultiBlockMask, TokenSet
from jepakit.data import ResumableBatches

GRID = (8, 8)
DATASET = IndexedDataset(torch.arange(64.0)[:, None])
collate = MaskCollator(MultiBlockMask(GRID), seed=0)


def batches(batch_size: int, rank: int = 0, world_size: int = 1) -> ResumableBatches:
    return ResumableBatches(64, batch_size, steps=8, seed=0, rank=rank, world_size=world_size)


def as_tensors(samples: Any) -> Any:
    images, masks = collate(samples)
    context, targets = masks.context, masks.targets
    return images, (context.idx, context.valid), (targets.idx, targets.valid)


def dispatched(accelerator: Accelerator) -> None:
    """Rank 0 draws whole batches, of which each gets its part, if masks travel as tensors."""
    order, rank = batches(8), accelerator.process_index
    own = DataLoader(DATASET, batch_sampler=batches(4, rank, 2), collate_fn=collate)
    loader = DataLoader(DATASET, batch_sampler=order, collate_fn=as_tensors)
    count = 0
    for (images, context, targets), expected in zip(accelerator.prepare(loader), own, strict=True):
        masks = Masks(TokenSet(*context, GRID), TokenSet(*targets, GRID))
        assert torch.equal(images, expected[0])
        assert torch.equal(masks.context.to_mask(), expected[1].context.to_mask())
        assert torch.equal(masks.targets.to_mask(), expected[1].targets.to_mask())
        count += 1
    assert count == 8
    plain = accelerator.prepare(DataLoader(DATASET, batch_sampler=order, collate_fn=collate))
    with pytest.raises(TypeError, match="Only nested list/tuple/dicts"):
        next(iter(plain))


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)  # DDP needs parameters

    def training_step(self, batch: Any, index: int) -> None:
        raise AssertionError("Lightning has divided the batches")

    def configure_optimizers(self) -> None:
        return None


def replaced(rank: int) -> None:
    """Lightning and Fabric cannot divide what is divided already, and say so."""
    loader = DataLoader(DATASET, batch_sampler=batches(4, rank, 2), collate_fn=collate)
    fabric = Fabric(devices=2, accelerator="cpu")
    fabric.launch()
    with pytest.raises(TypeError, match=r"ResumableBatches|'seed'"):
        fabric.setup_dataloaders(loader)
    trainer = Trainer(devices=2, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(TypeError, match=r"ResumableBatches|'seed'"):
        trainer.fit(Module(), loader)


if __name__ == "__main__":
    how = DataLoaderConfiguration(dispatch_batches=True, split_batches=True)
    accelerator = Accelerator(cpu=True, dataloader_config=how)
    if sys.argv[1] == "dispatched":
        dispatched(accelerator)
    else:
        replaced(accelerator.process_index)
    accelerator.end_training()
