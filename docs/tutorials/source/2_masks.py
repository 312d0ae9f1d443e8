"""
Masks and what they show
========================

At the end of this page you can draw masks, read how many patches a context has, compare samplers
by what they show and hide, and find a bias in one of them.

A JEPA is defined by its masks as much as by its loss: what the student sees (the *context*) and
what it predicts (the *targets*). In jepakit both are one object, :class:`~jepakit.Masks`, and
every sampler returns it.
"""

# %%
# One draw
# --------
#
# A sampler is built once, for a grid of patches, and called with a batch size. A ``generator``
# makes the draw repeatable.

import timm
import torch

from jepakit import InfeasibleMaskError, MaskedViT, MultiBlockMask, RandomMask
from jepakit.data import textured_shapes
from jepakit.masking import ReferenceMultiBlockMask, audit_masks
from jepakit.plots import plot_mask_audit, plot_masks

images = textured_shapes(8, 1)[0].tensors[0] / 255  # [8, 3, 48, 48], in [0, 1]
sampler = MultiBlockMask((12, 12), num_targets=4, min_context_coverage=0.25)
masks = sampler(len(images), generator=torch.Generator().manual_seed(0))
print("context", tuple(masks.context.shape), " targets", tuple(masks.targets.shape))

# %%
# Images, contexts and targets of six samples. Hidden patches are grey; each target block has a
# colour of its own, and blocks may overlap each other, never the context.

figure = plot_masks(images, masks)

# %%
# Indices and validity
# --------------------
#
# ``masks.context`` and ``masks.targets`` are :class:`~jepakit.TokenSet` objects: positions on the
# grid, counted row by row, and for each position whether it is valid. Sets of unequal size are
# padded, and padding is never attended to, never averaged and never in a loss.

target = masks.targets[0]  # the four blocks of the first image
print("counts", target.counts().tolist(), "of", target.shape[-1], "entries")
print("first block as positions", target.idx[0][target.valid[0]].tolist())
print("coverage of the contexts", masks.context.coverage().unique().tolist())

# %%
# Every context covers the same quarter of the grid. That is the promise of
# ``min_context_coverage``: it holds in every sample of every batch, after the targets were
# removed, and by default contexts are cut to exactly this number, so that no step pads a context.
# Arguments that cannot keep the promise are refused when the sampler is built:

try:
    MultiBlockMask((12, 12), target_scale=(0.6, 0.8), min_context_coverage=0.5)
except InfeasibleMaskError as error:
    print(error)

# %%
# Hidden means not computed
# -------------------------
#
# :class:`~jepakit.MaskedViT` drops hidden patches before the first block. Other pixels in all
# hidden patches therefore change no bit of what the student puts out:

backbone = timm.create_model(
    "vit_tiny_patch16_224", num_classes=0, img_size=48, patch_size=4, depth=2
)
encoder = MaskedViT(backbone).eval()
hidden = ~masks.context.to_mask().view(-1, 1, 12, 12)
hidden = hidden.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
noisy = torch.where(hidden, torch.rand_like(images), images)
with torch.no_grad():
    before, after = encoder(images, masks.context), encoder(noisy, masks.context)
print(f"{hidden.float().mean():.0%} of the pixels replaced by noise")
print("features are equal, bit for bit:", torch.equal(before, after))
print("patches computed:", before.shape[1], "of", encoder(images).shape[1])

# %%
# Samplers compared
# -----------------
#
# :func:`~jepakit.masking.audit_masks` draws many batches and counts. Three samplers on one grid:
# the blocks of this library, random patches as in masked autoencoders, and the masks exactly as
# I-JEPA's published code draws them.

samplers = {
    "MultiBlockMask": MultiBlockMask((12, 12)),
    "RandomMask": RandomMask((12, 12), target_ratio=0.75),
    "published code": ReferenceMultiBlockMask((12, 12)),
}
audits = {
    name: audit_masks(sampler, num_batches=60, generator=torch.Generator().manual_seed(0))
    for name, sampler in samplers.items()
}
print(
    f"{'':16}{'context, mean':>14}{'context, least':>16}{'never visible':>15}{'never target':>14}"
)
for name, audit in audits.items():
    coverage = audit.context_coverage
    never = [int((seen == 0).sum()) for seen in (audit.context_frequency, audit.target_frequency)]
    print(f"{name:16}{coverage.mean:14.1%}{coverage.min:16.1%}{never[0]:15}{never[1]:14}")

# %%
# How often each patch is visible (above) and predicted (below). Patches that never have the role
# are orange. The published code cuts every context of a batch to the length of the shortest, in
# raster order, so the lower rows are rarely visible, and the last row and column are never used
# at all. The other two show every patch.

figure = plot_mask_audit(audits)

# %%
# Blocks or random patches?
# -------------------------
#
# Random patches leave a visible patch next to nearly every hidden one, blocks do not. The mean
# distance from a hidden patch to the nearest visible one, in patches:

rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
places = torch.stack([rows, columns], dim=-1).flatten(0, 1)
distance = torch.cdist(places, places)  # [144, 144]
for name in ("MultiBlockMask", "RandomMask"):
    masks = samplers[name](256, generator=torch.Generator().manual_seed(0))
    visible = masks.context.to_mask()
    nearest = distance.masked_fill(~visible[:, None], torch.inf).amin(dim=-1)
    asked = masks.targets.to_mask().any(dim=1)
    print(f"{name:16}{nearest[asked].mean():5.2f}")

# %%
# The larger it is, the less a prediction can be a continuation of the next patch. For images
# I-JEPA uses blocks; :doc:`6_clips` shows a task for which random masks are the better start. All
# samplers, each with a picture, are in the :doc:`gallery of masks </gallery>`, and each quirk of
# the published code is measured in :doc:`/what_masks_show`.
