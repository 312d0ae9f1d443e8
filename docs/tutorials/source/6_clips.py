"""
Clips
=====

At the end of this page you have trained an encoder of clips on textures that differ in nothing
but the way they move, and compared it with single frames, raw pixels and the untrained encoder.
"""

# %%
# A set in which only motion counts
# ---------------------------------
#
# The clips of :func:`jepakit.data.moving_textures` are random textures; the label is their
# motion. Here four classes are kept: to the right, down, left and up. Every single frame has the
# same distribution in all classes.

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import jepakit
from jepakit.data import ResumableBatches, moving_textures
from jepakit.evaluation import extract_features, knn_accuracy
from jepakit.losses import TargetCentering
from jepakit.nn import TokenViT, Tubelets
from jepakit.plots import plot_curves


def four_classes(dataset):
    clips, labels = dataset.tensors
    return TensorDataset(clips[labels < 4], labels[labels < 4])


def standardise(clips):
    return F.instance_norm(clips.float() / 255, eps=1e-3)


train, test = (four_classes(dataset) for dataset in moving_textures(5000, 1500))
print(
    f"{len(train)} training clips, each {list(train[0][0].shape)}: channels, frames, rows, columns"
)

figure, panels = plt.subplots(2, 8, figsize=(9, 2.5), layout="constrained")
for row, label in zip(panels, (0, 3), strict=True):
    clip = train.tensors[0][train.tensors[1] == label][0, 0]
    for frame, panel in zip(clip, row, strict=True):
        panel.imshow(frame, cmap="gray", vmin=0, vmax=255)
        panel.set(xticks=[], yticks=[])
    row[0].set_ylabel(("right", "down", "left", "up")[label])

# %%
# The eight frames of two clips, one of a texture that moves to the right, one upwards.
#
# The same loop on a grid of three axes
# -------------------------------------
#
# :class:`~jepakit.nn.TokenViT` is the encoder for what timm has no model for. It cuts a clip into
# *tubelets*, here of 2 frames by 8 by 8 pixels, so the grid is 4x4x4. Sampler, predictor, teacher
# and loss are those for images.
#
# Tubelets are hidden at random: to predict one from those before, after and beside it takes the
# motion.

STEPS = 450
torch.manual_seed(0)
encoder = TokenViT(
    (4, 4, 4), 64, depth=3, num_heads=2, embed=Tubelets((2, 8, 8), 64, 1), position="sincos"
)
predictor = jepakit.MaskedPredictor(
    encoder.grid_size, 64, predictor_embed_dim=64, depth=2, num_heads=2, joint=True
)
for layer in (*encoder.modules(), *predictor.modules()):
    if isinstance(layer, nn.Linear):  # the default std of 0.02 is for models ten times as wide
        nn.init.xavier_uniform_(layer.weight)
untrained = jepakit.EMATeacher(encoder, momentum=1.0)
teacher = jepakit.EMATeacher(encoder, momentum=jepakit.linear(0.96, 1.0, steps=STEPS))
whiten = TargetCentering(encoder.grid_size, 64, scale="whiten")
sampler = jepakit.RandomMask(encoder.grid_size, target_ratio=0.75)
parameters = [*encoder.parameters(), *predictor.parameters()]
optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=0.05)
lr = jepakit.warmup_cosine(3e-3, 3e-5, warmup_steps=STEPS // 10, steps=STEPS)


def accuracy(encode):
    """kNN accuracy: the 20 nearest of 1,000 training clips vote on each test clip."""
    subset = TensorDataset(*train[:1000])
    features = [
        extract_features(encode, DataLoader(dataset, 500), prepare=standardise)
        for dataset in (subset, test)
    ]
    return knn_accuracy(*features)


curves = {"loss": [], "kNN accuracy": []}
batches = ResumableBatches(len(train), batch_size=32, steps=STEPS, seed=0)
for step, (clips, _) in enumerate(DataLoader(train, batch_sampler=batches)):
    clips = standardise(clips)
    masks = sampler(len(clips))
    target = jepakit.take_tokens(whiten(teacher(clips)), masks.targets)
    context = encoder(clips, masks.context)
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
    if step % 150 == 0 or step == STEPS - 1:
        curves["kNN accuracy"].append((step, accuracy(teacher.module.extract_features)))

# %%
# Loss and kNN accuracy over the steps. The accuracy rises while the loss falls by a few
# hundredths only: the texture in a hidden tubelet is random and cannot be predicted, its motion
# can.

figure = plot_curves(curves)

# %%
# Compared
# --------

rows = {
    "one frame": accuracy(lambda clips: clips[:, :, 4].flatten(1)),
    "raw clip": accuracy(lambda clips: clips.flatten(1)),
    "untrained encoder": accuracy(untrained.module.extract_features),
    "trained teacher": accuracy(teacher.module.extract_features),
}
for name, value in rows.items():
    print(f"{name:18} {value:6.1%}")

# %%
# A single frame is at chance, which is a quarter here.
#
# Next
# ----
#
# V-JEPA's own masks, videos from files, inflated image models and published weights are on
# :doc:`/video`; ``examples/vjepa.py`` is this loop as one file, on all ten motions.
