"""
Continue from a pretrained backbone
===================================

At the end of this page you can put a pretrained timm model (DINOv3, SigLIP, ...) into a JEPA and
train it further, and you have measured on a small model how
far a careless start moves its features, and what keeps them in place.
"""

# %%
# Any plain vision transformer of timm
# ------------------------------------
#
# With network access the line is ``timm.create_model(name, pretrained=True, num_classes=0)``.
# This page is built without it, so the large models below have random weights; everything printed
# here is the same with trained ones.

import copy

import timm
import torch
import torch.nn.functional as F
from timm.optim import param_groups_layer_decay
from torch.utils.data import DataLoader, TensorDataset

import jepakit
from jepakit.data import ResumableBatches, textured_shapes
from jepakit.evaluation import extract_features, knn_accuracy
from jepakit.losses import TargetCentering
from jepakit.plots import plot_curves

torch.manual_seed(0)
images = torch.rand(1, 3, 224, 224)
for name in ("vit_small_patch16_dinov3", "vit_base_patch16_siglip_224"):
    backbone = timm.create_model(name, pretrained=False, num_classes=0)  # pretrained=True
    encoder = jepakit.MaskedViT(backbone)
    teacher = jepakit.EMATeacher(encoder, momentum=0.999)
    encoder.eval()
    with torch.no_grad():
        equal = torch.equal(encoder(images), teacher(images))
    prefix = encoder.num_prefix_tokens
    print(f"{name}: grid {encoder.grid_size}, width {encoder.embed_dim}, {prefix} prefix tokens")
    print(f"    the teacher starts as an exact copy: {equal}")

# %%
# Class and register tokens (the prefix) are computed and attended to, but neither masked nor
# predicted. The checkpoint's own mean and std of the pixels are in
# ``timm.data.resolve_model_data_config(backbone)``.
#
# A stand-in for pretrained weights
# ---------------------------------
#
# To measure what is destroyed, weights are needed that hold something. This is DINOv3's
# architecture in small, trained with labels for a few seconds; from here on it plays the part of
# the downloaded checkpoint.


def four_classes(dataset):
    images, labels = dataset.tensors
    return TensorDataset(images[labels < 4], labels[labels < 4])


def standardise(images):
    return F.instance_norm(images.float() / 255, eps=1e-3)


train, test = (four_classes(dataset) for dataset in textured_shapes(4000, 1500))


def accuracy(encoder):
    """kNN accuracy: the 20 nearest of 1,000 training images vote on each test image."""
    subset = TensorDataset(*train[:1000])
    features = [
        extract_features(encoder.extract_features, DataLoader(data, 500), prepare=standardise)
        for data in (subset, test)
    ]
    return knn_accuracy(*features)


pretrained = timm.create_model(
    "vit_small_patch16_dinov3", num_classes=0, init_values=0.3,
    img_size=48, patch_size=8, embed_dim=64, depth=3, num_heads=2,
)  # fmt: skip
encoder = jepakit.MaskedViT(pretrained)
random_accuracy = accuracy(encoder)
head = torch.nn.Linear(64, 4)
optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=2e-3)
batches = ResumableBatches(len(train), batch_size=32, steps=150, seed=0)
for images, labels in DataLoader(train, batch_sampler=batches):
    F.cross_entropy(head(encoder(standardise(images)).mean(dim=1)), labels).backward()
    optimizer.step()
    optimizer.zero_grad()
start_accuracy = accuracy(encoder)
print(f"kNN accuracy: random weights {random_accuracy:.1%}, stand-in {start_accuracy:.1%}")

# %%
# Two starts
# ----------
#
# The predictor is new and random. In the first steps its gradients are noise to the encoder, and
# at the learning rate of a training from scratch this noise is large. The careful start has four
# parts:
#
# 1. The teacher starts as a copy, with a high momentum.
# 2. The predictor is trained alone first, on the frozen encoder.
# 3. The encoder's learning rate is a twentieth of the predictor's.
# 4. It is smaller still for earlier blocks (layer decay, by timm's ``param_groups_layer_decay``).
#
# Measured are the kNN accuracy and the *agreement*: the mean cosine similarity of an image's
# features with those of the pretrained weights. Features are centred by the pretrained mean
# first, since the vectors of all images share a large part.

held_out = standardise(test.tensors[0][:256])
original = copy.deepcopy(encoder).eval()
with torch.no_grad():
    reference = original.extract_features(held_out)
centre = reference.mean(dim=0)


@torch.no_grad()
def agreement(encoder):
    was_training = encoder.training
    features = encoder.eval().extract_features(held_out)
    encoder.train(was_training)
    return F.cosine_similarity(features - centre, reference - centre).mean().item()


def continue_training(*, careful, steps=100, warmup=40):
    """Train further; return the student and the agreement over the steps."""
    torch.manual_seed(1)
    student = copy.deepcopy(original).train()
    teacher = jepakit.EMATeacher(student, momentum=0.998 if careful else 0.95)
    predictor = jepakit.MaskedPredictor(
        student.grid_size, 64, predictor_embed_dim=64, depth=1, num_heads=2, joint=True
    )
    whiten = TargetCentering(student.grid_size, 64, scale="whiten")
    sampler = jepakit.MultiBlockMask(student.grid_size)
    if careful:
        groups = param_groups_layer_decay(student.backbone, weight_decay=0.05, layer_decay=0.7)
        for group in groups:
            group["lr"] = 1e-4 * group["lr_scale"]
    else:
        groups = [{"params": list(student.parameters()), "lr": 2e-3}]
    optimizer = torch.optim.AdamW([*groups, {"params": predictor.parameters(), "lr": 2e-3}])
    total = warmup + steps if careful else steps
    batches = ResumableBatches(len(train), batch_size=32, steps=total, seed=1)
    curve = []
    for step, (images, _) in enumerate(DataLoader(train, batch_sampler=batches)):
        frozen = careful and step < warmup
        student.requires_grad_(not frozen)
        images = standardise(images)
        masks = sampler(len(images))
        target = jepakit.take_tokens(whiten(teacher(images)), masks.targets)
        pred = predictor(student(images, masks.context), masks.context, masks.targets)
        jepakit.masked_mse(pred, target, masks.targets.valid).backward()
        optimizer.step()
        optimizer.zero_grad()
        if not frozen:
            teacher.update(student)
        if step % 10 == 0 or step == total - 1:
            curve.append((step + 1, agreement(student)))
    return student, curve


careless, careless_curve = continue_training(careful=False)
careful, careful_curve = continue_training(careful=True)

# %%
# The check that belongs into every such run, before any long training: how far did the features
# move in the first steps?

print(f"{'':24}{'agreement':>10}{'kNN':>8}")
print(f"{'pretrained':24}{agreement(original):10.3f}{start_accuracy:8.1%}")
for name, student in (("careless, 100 steps", careless), ("careful, 40 + 100 steps", careful)):
    print(f"{name:24}{agreement(student):10.3f}{accuracy(student):8.1%}")

# %%
# Agreement with the pretrained features over the steps. On the right the encoder is frozen for
# the first 40 steps, so there it is exactly 1.

figure = plot_curves({"careless start": careless_curve, "careful start": careful_curve})
for panel in figure.axes:
    panel.set_ylim(-0.05, 1.1)

# %%
# How far features should move in the end is another question: without any change nothing new is
# learned. But that should come from the data over thousands of steps, and not from a random
# predictor in the first hundred. With a real checkpoint, run the same check on a few hundred of
# your own images, and lower the encoder's learning rate until the agreement after the first steps
# stays near 1.
