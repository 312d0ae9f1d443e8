"""
Your own encoder, and the contracts
===================================

At the end of this page you have written an encoder for time series from torch's own layers,
planted two mistakes that are common in JEPA code, and seen :doc:`jepakit.testing
</parts/testing>` find both.
"""

# %%
# What an encoder has to be
# -------------------------
#
# No base class. It has ``grid_size`` and ``embed_dim``, is called as ``encoder(inputs)`` or
# ``encoder(inputs, context)``, and returns one vector for each entry of the context. Hidden parts
# must have no influence, and padding comes out as zeros. Here is a first attempt, for series of
# 64 values in 16 patches. It looks right, and has a leak.

import matplotlib.pyplot as plt
import torch
from torch import nn

import jepakit
from jepakit.testing import assert_encoder_contract


class Encoder(nn.Module):
    def __init__(self, num_patches=16, patch_size=4, embed_dim=32, depth=2):
        super().__init__()
        self.grid_size, self.embed_dim = (num_patches,), embed_dim
        self.patches = nn.Conv1d(1, embed_dim, patch_size, stride=patch_size)
        self.positions = nn.Parameter(0.02 * torch.randn(num_patches, embed_dim))
        block = nn.TransformerEncoderLayer(
            embed_dim, 4, 4 * embed_dim, dropout=0.0, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(
            block, depth, nn.LayerNorm(embed_dim), enable_nested_tensor=False
        )

    def embed(self, series):
        return self.patches(series).transpose(1, 2) + self.positions


class LeakyEncoder(Encoder):
    def forward(self, series, context=None):
        features = self.blocks(self.embed(series))  # first mistake: hidden patches attend, too
        return features if context is None else jepakit.take_tokens(features, context)


def report(encoder):
    try:
        assert_encoder_contract(encoder, torch.randn(4, 1, 64))
    except AssertionError as error:
        print(error)
    else:
        print("all laws hold")


torch.manual_seed(0)
leaky = LeakyEncoder()
report(leaky)

# %%
# The output has the right shape, and a training would run. Its loss would even fall faster, since
# the "hidden" part is in the features of the visible one. The contract names the law that is
# violated, and where.
#
# Second attempt
# --------------
#
# Hidden patches are dropped before the first block. Now contexts of unequal length are padded,
# and there is a second mistake:


class PaddedEncoder(Encoder):
    def forward(self, series, context=None):
        features = self.embed(series)
        if context is None:
            return self.blocks(features)
        features = jepakit.take_tokens(features, context)
        return self.blocks(features)  # second mistake: padding is a key, and not zero at the end


report(PaddedEncoder())

# %%
# Here a sample's features depend on how much padding the rest of the batch forces on it.
#
# Third attempt
# -------------
#
# Padding is masked as a key and set to zero at the end.


class OwnEncoder(Encoder):
    def forward(self, series, context=None):
        features = self.embed(series)
        if context is None:
            return self.blocks(features)
        features = jepakit.take_tokens(features, context)
        features = self.blocks(features, src_key_padding_mask=~context.valid)
        return features.masked_fill(~context.valid.unsqueeze(-1), 0)


encoder = OwnEncoder()
report(encoder)

# %%
# The leak in a picture
# ---------------------
#
# The gradient of the first visible patch's features with respect to the series shows which inputs
# they depend on.

series = torch.sin(torch.linspace(0, 20, 64)).expand(1, 1, -1).clone()
visible = torch.zeros(1, 16, dtype=torch.bool)
visible[:, 2:7] = visible[:, 11:13] = True
context = jepakit.TokenSet.from_mask(visible, (16,))
figure, panels = plt.subplots(1, 2, figsize=(9, 2.6), sharey=True, layout="constrained")
for panel, (name, model) in zip(panels, {"leaky": leaky, "fixed": encoder}.items(), strict=True):
    inputs = series.clone().requires_grad_()
    # Weighted at random: a layer norm's outputs always have the same sum.
    weights = torch.randn(32, generator=torch.Generator().manual_seed(0))
    (model(inputs, context)[0, 0] @ weights).backward()
    gradient = inputs.grad[0, 0].abs()
    panel.bar(range(64), gradient, width=1.0, color="#0072B2")
    for patch in (~visible[0]).nonzero()[:, 0].tolist():
        panel.axvspan(4 * patch - 0.5, 4 * patch + 3.5, color="0.85", zorder=0)
    panel.set(title=name, xlabel="input", yscale="symlog")
    panel.set_yscale("linear")
    hidden = ~visible[0].repeat_interleave(4)
    print(f"{name}: largest gradient of a hidden input {gradient[hidden].max():.4f}")
_ = panels[0].set_ylabel("absolute gradient")

# %%
# Gradient of one visible patch's features; hidden inputs are shaded. In the leaky encoder they
# have an influence, in the fixed one exactly none.
#
# The rest of the library takes it as it is
# -----------------------------------------
#
# Samplers, predictor, teacher and losses need no more than the contract. One step of training:

sampler = jepakit.RandomMask(encoder.grid_size, target_ratio=0.5)
predictor = jepakit.MaskedPredictor(
    encoder.grid_size, 32, predictor_embed_dim=32, depth=1, num_heads=2, joint=True
)
teacher = jepakit.EMATeacher(encoder, momentum=0.99)
optimizer = torch.optim.AdamW([*encoder.parameters(), *predictor.parameters()], lr=1e-3)

series = torch.randn(8, 1, 64)
masks = sampler(len(series))
target = jepakit.take_tokens(jepakit.normalize_targets(teacher(series)), masks.targets)
pred = predictor(encoder(series, masks.context), masks.context, masks.targets)
loss = jepakit.masked_smooth_l1(pred, target, masks.targets.valid)
loss.backward()
optimizer.step()
teacher.update(encoder)
print(f"loss {loss.item():.3f}, teacher at step {teacher.step}")

# %%
# Next
# ----
#
# There are contracts for samplers, predictors, pools, losses and teachers, too:
# :doc:`/parts/testing`. Put the call into your own tests, and watch a longer training as in
# :doc:`3_collapse`: the contracts say nothing about collapse.
