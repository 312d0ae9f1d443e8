"""
Watching for collapse
=====================

At the end of this page you have seen features collapse in two ways while the loss fell or looked
harmless, read what :class:`~jepakit.CollapseMonitor` reports, and followed its advice until it is
silent.

A JEPA predicts features that it makes itself. The easiest features to predict are constant ones,
so a falling loss is no evidence of learning. Watch the features instead.
"""

# %%
# Three ways to train
# -------------------
#
# One loop, three kinds of targets. Everything else is equal: initial weights, images, masks and
# learning rate.

import matplotlib.pyplot as plt
import timm
import torch
import torch.nn.functional as F

import jepakit
from jepakit.data import textured_shapes
from jepakit.diagnostics import feature_std
from jepakit.losses import vicreg

dataset = textured_shapes(3000, 1)[0].tensors[0]
STEPS = 120


def train(kind):
    """Train one model; return its curves and the reports of the monitor."""
    torch.manual_seed(0)
    backbone = timm.create_model(
        "vit_tiny_patch16_224", weight_init="jax", num_classes=0,
        img_size=48, patch_size=8, embed_dim=64, depth=2, num_heads=2,
    )  # fmt: skip
    encoder = jepakit.MaskedViT(backbone)
    predictor = jepakit.MaskedPredictor(
        encoder.grid_size, 64, predictor_embed_dim=64, depth=1, num_heads=2
    )
    teacher = jepakit.EMATeacher(encoder, momentum=jepakit.linear(0.95, 1.0, steps=STEPS))
    sampler = jepakit.MultiBlockMask(encoder.grid_size)
    monitor = jepakit.CollapseMonitor(action="record")  # "warn" is the default
    parameters = [*encoder.parameters(), *predictor.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.05)
    curves, reports = {"loss": [], "feature std": [], "effective rank": []}, []

    for step in range(STEPS):
        images = dataset[torch.randint(len(dataset), (32,))]
        images = F.instance_norm(images.float() / 255, eps=1e-3)
        masks = sampler(len(images))
        context = encoder(images, masks.context)
        pred = predictor(context, masks.context, masks.targets)

        features = encoder(images) if kind == "no teacher" else teacher(images)
        target = features if kind == "no teacher" else jepakit.normalize_targets(features)
        target = jepakit.take_tokens(target, masks.targets)
        loss = jepakit.masked_mse(pred, target, masks.targets.valid)
        curves["loss"].append(loss.item())
        if kind == "teacher and VICReg":
            pooled = jepakit.mean_tokens(context, masks.context)
            loss = loss + 0.1 * vicreg(pooled, features.mean(dim=1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        teacher.update(encoder)

        pooled = features.detach().mean(dim=1)  # one vector for each image
        report = monitor.update(pooled, step=step)
        if report:
            reports.append(report)
        curves["feature std"].append(feature_std(pooled).mean().item())
        curves["effective rank"].append(jepakit.effective_rank(pooled).item())
    return curves, reports


# %%
# No teacher: everything becomes constant
# ---------------------------------------
#
# First the mistake that every JEPA avoids: the targets are the student's own features, with
# gradient. Encoder and predictor then agree on a constant.

runs = {"no teacher": train("no teacher")}
curves, reports = runs["no teacher"]
print(f"loss         first {curves['loss'][0]:.3f}, last {curves['loss'][-1]:.5f}")
print(f"feature std  first {curves['feature std'][0]:.3f}, last {curves['feature std'][-1]:.5f}\n")
print(reports[0])

# %%
# The loss is nearly 0, and it is worthless: the features of all images have become nearly the
# same. The monitor compares the run with its own first steps, so no threshold has to be chosen.
# It reports the kind of collapse, when it began, the numbers beside their reference, and what
# usually helps. In your own loop this is one line, ``monitor.update(features.mean(dim=1))``, and
# it warns instead of recording.
#
# A teacher: fewer and fewer directions
# -------------------------------------
#
# Now the targets come from a moving average, without gradient, and each is layer-normalised as in
# I-JEPA's published code. Features cannot shrink to a constant as easily. But the learning rate
# is high for so small a model and so short a momentum.

runs["teacher"] = train("teacher")
curves, reports = runs["teacher"]
for name in ("loss", "feature std", "effective rank"):
    print(f"{name:15} first {curves[name][0]:7.3f}, last {curves[name][-1]:7.3f}")
print()
print(reports[0] if reports else "no report")

# %%
# Neither the loss nor the standard deviation gives this away. The effective rank does: features
# still vary, but along few directions.
#
# The cure
# --------
#
# One of the suggested remedies is a regulariser on pooled features that decorrelates their
# dimensions. C-JEPA adds VICReg (:func:`~jepakit.losses.vicreg`) to I-JEPA's loss, with a small
# weight:

runs["teacher and VICReg"] = train("teacher and VICReg")
curves, reports = runs["teacher and VICReg"]
for name in ("loss", "feature std", "effective rank"):
    print(f"{name:15} first {curves[name][0]:7.3f}, last {curves[name][-1]:7.3f}")
print()
print(reports[0] if reports else "no report")

# %%
# All three runs, with a dot where the monitor first reported. Judged by the loss alone, the run
# that collapsed completely looks best. (The loss of the third is shown without VICReg.)

colours = {"no teacher": "#D55E00", "teacher": "#CC79A7", "teacher and VICReg": "#0072B2"}
figure, panels = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
for panel, metric in zip(panels, ("loss", "feature std", "effective rank"), strict=True):
    for name, (curves, reports) in runs.items():
        panel.plot(curves[metric], color=colours[name], label=name)
        if reports:
            step = reports[0].step
            panel.plot(step, curves[metric][step], "o", color=colours[name])
    panel.set(title=metric, xlabel="step")
    panel.set_yscale("linear" if metric == "effective rank" else "log")
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
_ = panels[0].legend()

# %%
# Next
# ----
#
# That nothing has collapsed does not show that anything useful is learned: compare probes with
# those of the untrained encoder, as in :doc:`1_ijepa`. The formulas of the monitor are in
# :class:`~jepakit.diagnostics.CollapseMonitor`, other diagnostics on :doc:`/parts/diagnostics`.
