"""
I-JEPA in 30 lines
==================

At the end of this page you have trained a small vision transformer without labels, in about 20
seconds on one CPU core, and measured that it learned something: the nearest neighbours of an
image show the same texture more often than before training.

In I-JEPA a *student* sees a part of an image, the *context*. A *predictor* predicts the features
of hidden parts, the *targets*. The true features come from the *teacher*, a moving average of the
student, which sees the whole image. No pixel is predicted and no label is used.
"""

# %%
# Data
# ----
#
# :func:`jepakit.data.textured_shapes` draws images in code. Here they are of four kinds, stripes
# in four directions. Labels serve for the evaluation only. Each image is standardised on its own,
# which removes brightness and contrast.

import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import jepakit
from jepakit.data import ResumableBatches, textured_shapes
from jepakit.evaluation import extract_features, knn_accuracy, nearest_neighbours
from jepakit.losses import TargetCentering
from jepakit.nn import init_sincos_positions
from jepakit.plots import plot_curves, plot_masks, plot_neighbours


def four_classes(dataset):
    images, labels = dataset.tensors
    return TensorDataset(images[labels < 4], labels[labels < 4])


def standardise(images):
    return F.instance_norm(images.float() / 255, eps=1e-3)


train, test = (four_classes(dataset) for dataset in textured_shapes(8000, 2000))
print(f"{len(train)} training images, {len(test)} test images, each {list(train[0][0].shape)}")

# %%
# Parts
# -----
#
# The backbone is a timm model. :class:`~jepakit.MaskedViT` runs it on the visible patches alone,
# :class:`~jepakit.EMATeacher` is its moving average, and :class:`~jepakit.MultiBlockMask` draws
# which patches are visible and which are predicted.
#
# Two settings are for a short run of a small model. Initial weights and positions are larger than
# timm's defaults, which suit models ten times as wide. And the targets are centred and whitened
# (:class:`~jepakit.losses.TargetCentering`), where I-JEPA's published code uses layer
# normalisation: then no direction of the features is too small to be learned within some hundred
# steps.

STEPS = 320
torch.manual_seed(0)
backbone = timm.create_model(
    "vit_tiny_patch16_224", weight_init="jax", num_classes=0,
    img_size=48, patch_size=8, embed_dim=64, depth=2, num_heads=2,
)  # fmt: skip
encoder = jepakit.MaskedViT(backbone)
init_sincos_positions(encoder)
predictor = jepakit.MaskedPredictor(
    encoder.grid_size, 64, predictor_embed_dim=64, depth=1, num_heads=2, joint=True
)
for layer in predictor.modules():
    if isinstance(layer, nn.Linear):
        nn.init.xavier_uniform_(layer.weight)
teacher = jepakit.EMATeacher(encoder, momentum=jepakit.linear(0.9, 1.0, steps=STEPS))
untrained = jepakit.EMATeacher(encoder, momentum=1.0)  # a copy to compare with
whiten = TargetCentering(encoder.grid_size, 64, scale="whiten")
sampler = jepakit.MultiBlockMask(encoder.grid_size, num_targets=3, target_scale=(0.15, 0.25))

# %%
# A look at the masks before training. Above are the images, in the middle what the student sees
# of them, and below the blocks whose features are predicted, each with an outline of its own.

shown = torch.stack([test[i][0] for i in range(6)])
figure = plot_masks(shown / 255, sampler(6, generator=torch.Generator().manual_seed(0)))

# %%
# Training
# --------
#
# With the parts above, this is the whole loop: fewer than 30 lines, with the evaluation in
# between.


def accuracy(encode):
    """kNN accuracy: the 20 nearest of 1,000 training images vote on each test image."""
    subset = TensorDataset(*train[:1000])
    features = [
        extract_features(encode, DataLoader(dataset, 500), prepare=standardise)
        for dataset in (subset, test)
    ]
    return knn_accuracy(*features)


parameters = [*encoder.parameters(), *predictor.parameters()]
optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=0.05)
lr = jepakit.warmup_cosine(6e-3, 6e-5, warmup_steps=STEPS // 10, steps=STEPS)
batches = ResumableBatches(len(train), batch_size=64, steps=STEPS, seed=0)
curves = {"loss": [], "effective rank": [], "kNN accuracy": []}

for step, (images, _) in enumerate(DataLoader(train, batch_sampler=batches)):
    images = standardise(images)
    masks = sampler(len(images))
    features = teacher(images)
    target = jepakit.take_tokens(whiten(features), masks.targets)
    context = encoder(images, masks.context)  # only the visible patches are computed
    pred = predictor(context, masks.context, masks.targets)
    loss = jepakit.masked_mse(pred, target, masks.targets.valid)
    for group in optimizer.param_groups:
        group["lr"] = lr(step)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    teacher.update(encoder)

    if step % 10 == 0 or step == STEPS - 1:
        curves["loss"].append((step, loss.item()))
        rank = jepakit.effective_rank(features.mean(dim=1))
        curves["effective rank"].append((step, rank.item()))
    if step % 80 == 0 or step == STEPS - 1:
        curves["kNN accuracy"].append((step, accuracy(teacher.module.extract_features)))

# %%
# Loss, effective rank and kNN accuracy over the steps. The loss is near 1, the variance of
# whitened targets, and falls only a little, since most of what is hidden cannot be predicted. It
# is the third panel that shows whether anything is learned; watch the second for :doc:`collapse
# <3_collapse>`.

figure = plot_curves(curves)

# %%
# What was learned
# ----------------
#
# A number means little on its own, so compare it with raw pixels, with the encoder as it was
# before training, and with chance.

rows = {
    "chance": test.tensors[1].bincount().max().item() / len(test),
    "raw pixels": accuracy(lambda images: images.flatten(1)),
    "untrained encoder": accuracy(untrained.module.extract_features),
    "trained teacher": accuracy(teacher.module.extract_features),
}
for name, value in rows.items():
    print(f"{name:18} {value:6.1%}")

# %%
# The first test images and their nearest training images. A solid blue frame marks a neighbour of
# the same class, a dashed orange one another class.

gallery, queries = TensorDataset(*train[:1000]), TensorDataset(*test[:5])
neighbours = {}
for name, encode in (("untrained", untrained), ("trained", teacher)):
    searched, asked = (
        extract_features(
            encode.module.extract_features, DataLoader(dataset, 500), prepare=standardise
        )
        for dataset in (gallery, queries)
    )
    neighbours[name] = nearest_neighbours(searched, asked, k=3)
figure = plot_neighbours(
    queries.tensors[0] / 255,
    gallery.tensors[0] / 255,
    neighbours,
    labels=queries.tensors[1],
    gallery_labels=gallery.tensors[1],
    num_queries=5,
)

# %%
# Next
# ----
#
# ``examples/ijepa.py`` is the same loop as one file to copy, on ten textures, CIFAR-10 or your
# own folder, with checkpoints and more pictures. :doc:`2_masks` explains the masks.
