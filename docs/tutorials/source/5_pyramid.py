"""
A pyramid of features
=====================

At the end of this page you have trained an H-JEPA with two levels: one encoder whose features are
pooled to a coarser grid, with a prediction and a loss on each level.
"""

# %%
# Pooling on the grid
# -------------------
#
# :class:`~jepakit.HierarchicalPyramid` pools 2x2 cells of the grid to one, level by level. It
# takes the context too: cells that are hidden do not count, and a coarse cell is the mean of what
# is visible under it.

import matplotlib.pyplot as plt
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import jepakit
from jepakit.data import ResumableBatches, textured_shapes
from jepakit.diagnostics import explained_variance
from jepakit.losses import TargetCentering
from jepakit.masking import NestedMask
from jepakit.nn import init_sincos_positions
from jepakit.plots import plot_curves, plot_patch_pca

pyramid = jepakit.HierarchicalPyramid((8, 8), 64, num_levels=3)
print("grids:", pyramid.grid_sizes)
context = jepakit.RandomMask((8, 8), target_ratio=0.8)(1).context
for level in pyramid(torch.randn(1, context.shape[-1], 64), context):
    print(f"{int(level.tokens.counts())} visible cells on the grid {level.tokens.grid_size}")

# %%
# Masks that are whole on every level
# -----------------------------------
#
# A coarse cell on the border of a target would belong to context and target at once, and the
# coarse level would predict in part what it sees. :class:`~jepakit.masking.NestedMask` draws
# blocks on the coarsest grid and refines them, so a cell of any level is entirely in the context
# or entirely in a target.

nested = NestedMask((8, 8), jepakit.MultiBlockMask((4, 4), num_targets=2))
masks = nested(1, generator=torch.Generator().manual_seed(1))
figure, panels = plt.subplots(1, 2, figsize=(5.6, 3), layout="constrained")
for level, panel in enumerate(panels):
    coarse = masks.coarsen(level)
    picture = coarse.context.to_mask()[0].float()
    picture = picture - coarse.targets.to_mask()[0].any(dim=0).float()
    panel.imshow(picture.view(coarse.grid_size), cmap="RdBu", vmin=-1.6, vmax=1.6)
    panel.set_title(f"level {level}")
    panel.set(xticks=[], yticks=[])

# %%
# One draw on two levels: context blue, targets red, cells without a role white.
#
# Training
# --------
#
# Encoder and pyramid are one module, so the teacher averages both. Each level has a predictor and
# whitened targets, and :func:`~jepakit.hierarchical_loss` adds the losses.


class Student(nn.Module):
    def __init__(self, encoder, num_levels):
        super().__init__()
        self.encoder = encoder
        self.pyramid = jepakit.HierarchicalPyramid(
            encoder.grid_size, encoder.embed_dim, num_levels=num_levels
        )

    def forward(self, images, context=None):
        return self.pyramid(self.encoder(images, context), context)


def stripes(dataset):
    """The images of four of the ten textures: stripes in four directions."""
    images, labels = dataset.tensors
    return TensorDataset(images[labels < 4])


def standardise(images):
    return F.instance_norm(images.float() / 255, eps=1e-3)


LEVELS, STEPS = 2, 240
torch.manual_seed(0)
train, test = (stripes(dataset) for dataset in textured_shapes(8000, 600))
backbone = timm.create_model(
    "vit_tiny_patch16_224", weight_init="jax", num_classes=0,
    img_size=48, patch_size=6, embed_dim=64, depth=2, num_heads=2,
)  # fmt: skip
student = Student(jepakit.MaskedViT(backbone), LEVELS)
init_sincos_positions(student.encoder)
grids = student.pyramid.grid_sizes
predictors = nn.ModuleList(
    jepakit.MaskedPredictor(grid, 64, predictor_embed_dim=64, depth=1, num_heads=2, joint=True)
    for grid in grids
)
teacher = jepakit.EMATeacher(student, momentum=jepakit.linear(0.9, 1.0, steps=STEPS))
whiten = nn.ModuleList(TargetCentering(grid, 64, scale="whiten") for grid in grids)
optimizer = torch.optim.AdamW([*student.parameters(), *predictors.parameters()], lr=6e-3)
lr = jepakit.warmup_cosine(6e-3, 6e-5, warmup_steps=STEPS // 10, steps=STEPS)


def predictions(images, masks):
    """Predictions, targets and validity, each a list over the levels."""
    preds, targets, valids = [], [], []
    for level, (own, goal) in enumerate(
        zip(student(images, masks.context), teacher(images), strict=True)
    ):
        features, context = own.trimmed()  # without entries that are padding in every sample
        asked = masks.coarsen(level).targets
        preds.append(predictors[level](features, context, asked))
        targets.append(jepakit.take_tokens(whiten[level](goal.features), asked))
        valids.append(asked.valid)
    return preds, targets, valids


@torch.no_grad()
def explained():
    """Explained variance of each level on held-out images."""
    whiten.eval()
    masks = nested(len(test), generator=torch.Generator().manual_seed(0))
    found = [
        float(explained_variance(*each))
        for each in zip(*predictions(standardise(test.tensors[0]), masks), strict=True)
    ]
    whiten.train()
    return found


curves = {f"loss of level {level}": [] for level in range(LEVELS)}
batches = ResumableBatches(len(train), batch_size=32, steps=STEPS, seed=0)
for step, (images,) in enumerate(DataLoader(train, batch_sampler=batches)):
    images = standardise(images)
    loss, parts = jepakit.hierarchical_loss(*predictions(images, nested(len(images))))
    for group in optimizer.param_groups:
        group["lr"] = lr(step)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    teacher.update(student)
    if step == 0:
        before = explained()
    if step % 10 == 0 or step == STEPS - 1:
        for level in range(LEVELS):
            curves[f"loss of level {level}"].append((step, parts[f"level_{level}"].item()))

# %%
# The loss of each level. Targets are whitened, so 1 is about the loss of a prediction that knows
# nothing.

figure = plot_curves(curves)

# %%
# On images that were not trained on, the fraction of the targets' variance that the predictions
# explain, after the first step and at the end:

after = explained()
for level in range(LEVELS):
    print(f"level {level}: {before[level]:6.1%} -> {after[level]:6.1%}")

# %%
# Little, after so few steps, but more than at the start, on both levels.
#
# The teacher's features of both levels, as colours: the first three principal components, less
# what all images share. A coarse cell is repeated over the patches that it covers.

with torch.no_grad():
    levels = teacher(standardise(test.tensors[0]))
maps = {}
for level, (features, _) in enumerate(levels):
    cells = (features - features.mean(dim=0)).unflatten(1, grids[level])
    for axis in (1, 2):
        cells = cells.repeat_interleave(2**level, dim=axis)
    maps[f"level {level}"] = cells.flatten(1, 2)
figure = plot_patch_pca(test.tensors[0] / 255, maps, grids[0], smooth=False)

# %%
# Does it pay?
# ------------
#
# This page shows that both levels train, not that two are better than one. In the comparisons at
# equal compute that were made with this library there was no lasting gain; the tables are on
# :doc:`/parts/pyramid`. Start with one level, and add a second if it helps your task.
