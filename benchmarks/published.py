"""The published I-JEPA recipe in plain torch and timm, to compare jepakit with.

Written from the papers and from the known behaviour of the published code (arXiv:2301.08243,
arXiv:2404.08471), not copied from it. Lists of indices come from a collator that loops over the
samples; every target block is predicted in a sequence of its own; the teacher sees the whole image;
its weights follow the student's in a loop over parameters. One difference favours this side: the
published code multiplies out its attention, and timm's blocks use torch's fused kernels.
"""

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.data import default_collate

# Places that are tried with all targets subtracted, then with one less, and so on.
_TRIES = 20


def gather(features: Tensor, index: Tensor) -> Tensor:
    """Rows of `[b N d]` at the positions `[b n]`."""
    return features.gather(1, index[:, :, None].expand(-1, -1, features.shape[2]))


class PlainEncoder(nn.Module):
    """A timm ViT without class token: hidden patches are dropped after the positions are added."""

    def __init__(self, backbone: VisionTransformer) -> None:
        super().__init__()
        self.patch_embed, self.pos_embed = backbone.patch_embed, backbone.pos_embed
        self.blocks, self.norm = backbone.blocks, backbone.norm

    def forward(self, images: Tensor, context: Tensor | None = None) -> Tensor:
        x = self.patch_embed(images) + self.pos_embed
        if context is not None:
            x = gather(x, context)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class PlainPredictor(nn.Module):
    """A narrow ViT of timm's blocks; predicts each target block from a copy of the context."""

    pos_embed: Tensor

    def __init__(
        self, grid_size: tuple[int, int], encoder_dim: int, dim: int, depth: int, num_heads: int
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.register_buffer("pos_embed", sines_and_cosines(grid_size, dim)[None])
        norm = torch.nn.LayerNorm
        self.blocks = nn.ModuleList(Block(dim, num_heads, qkv_bias=True) for _ in range(depth))
        for block in self.blocks:
            block.norm1, block.norm2 = norm(dim, eps=1e-6), norm(dim, eps=1e-6)
        self.norm = norm(dim, eps=1e-6)
        self.proj = nn.Linear(dim, encoder_dim)

    def forward(self, features: Tensor, context: Tensor, targets: Sequence[Tensor]) -> Tensor:
        """Predictions `[m * b, k, d]`, block after block, from features `[b n d]`."""
        batch = len(features)
        positions = self.pos_embed.expand(batch, -1, -1)
        visible = self.embed(features) + gather(positions, context)
        hidden = torch.cat([self.mask_token + gather(positions, index) for index in targets])
        x = torch.cat([visible.repeat(len(targets), 1, 1), hidden], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.proj(self.norm(x[:, context.shape[1] :]))


def sines_and_cosines(grid_size: tuple[int, int], dim: int) -> Tensor:
    """Fixed positions `[N dim]`: the first half of the width for the column, the rest for the row.

    Each half has sines, then cosines, of the coordinate over 10000^(2 i / (dim / 2)).
    """
    height, width = grid_size
    frequency = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    halves = []
    for coordinate in (column, row):
        angle = coordinate.flatten()[:, None] * frequency
        halves += [angle.sin(), angle.cos()]
    return torch.cat(halves, dim=1).float()


def plain_loss(
    encoder: PlainEncoder,
    teacher: PlainEncoder,
    predictor: PlainPredictor,
    images: Tensor,
    context: Tensor,
    targets: Sequence[Tensor],
) -> Tensor:
    """Smooth L1 between predictions and the teacher's layer-normed features."""
    with torch.no_grad():
        features = teacher(images)
        features = F.layer_norm(features, features.shape[-1:])
        target = torch.cat([gather(features, index) for index in targets])
    pred = predictor(encoder(images, context), context, targets)
    return F.smooth_l1_loss(pred, target)


def make_teacher(encoder: PlainEncoder) -> PlainEncoder:
    """A copy that gets no gradient."""
    return copy.deepcopy(encoder).requires_grad_(False)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Moving average, parameter by parameter."""
    for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
        mine.mul_(momentum).add_((1 - momentum) * theirs.detach())


# Collators. Sizes are drawn for the batch, places with torch's global generator for each sample.
# As published, corners stay tensors: slicing with them takes a third of the time.


def _uniform(scale: tuple[float, float], u: float) -> float:
    return scale[0] + u * (scale[1] - scale[0])


def _sides(area: int, aspect: float, grid_size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a block, below the grid's."""
    h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    return min(h, grid_size[0] - 1), min(w, grid_size[1] - 1)


def image_masks(
    grid_size: tuple[int, int],
    batch_size: int,
    *,
    num_targets: int = 4,
    target_scale: tuple[float, float] = (0.15, 0.2),
    target_aspect_ratio: tuple[float, float] = (0.75, 1.5),
    context_scale: tuple[float, float] = (0.85, 1.0),
    min_keep: int = 10,
) -> tuple[Tensor, list[Tensor]]:
    """I-JEPA's masks: indices of the contexts `[b n]`, and of each target block `[b k]`.

    `jepakit.masking.ReferenceMultiBlockMask` lists the quirks, which are all here.
    """
    height, width = grid_size
    u = float(torch.rand(1))  # one number for scale and aspect ratio
    area = int(height * width * _uniform(target_scale, u))
    target_size = _sides(area, _uniform(target_aspect_ratio, u), grid_size)
    area = int(height * width * _uniform(context_scale, float(torch.rand(1))))
    context_size = _sides(area, 1.0, grid_size)

    def draw(size: tuple[int, int], outside: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Indices of a block where all masks `outside` are 1, and the mask of what is around it."""
        h, w = size
        tries = 0
        while True:
            top, left = torch.randint(0, height - h, (1,)), torch.randint(0, width - w, (1,))
            block = torch.zeros(height, width, dtype=torch.int32)
            block[top : top + h, left : left + w] = 1
            for free in outside[: max(0, len(outside) - tries // _TRIES)]:
                block *= free
            index = torch.nonzero(block.flatten()).squeeze(1)
            if len(index) > min_keep:
                complement = torch.ones(height, width, dtype=torch.int32)
                complement[top : top + h, left : left + w] = 0
                return index, complement
            tries += 1

    contexts, targets = [], []
    for _ in range(batch_size):
        drawn = [draw(target_size, []) for _ in range(num_targets)]
        targets.append([index for index, _ in drawn])
        contexts.append(draw(context_size, [complement for _, complement in drawn])[0])
    length = min(map(len, contexts))
    return default_collate([context[:length] for context in contexts]), default_collate(targets)


def clip_masks(
    grid_size: tuple[int, int, int],
    batch_size: int,
    *,
    num_blocks: int,
    scale: float,
    aspect_ratio: tuple[float, float] = (0.75, 1.5),
    temporal_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """V-JEPA's masks: indices of the contexts and of their complements, both cut to the shortest.

    All blocks of a batch have one size; the context is what no block covers.
    """
    frames, height, width = grid_size
    duration = max(1, int(frames * temporal_scale))
    aspect = _uniform(aspect_ratio, float(torch.rand(1)))
    area = int(height * width * scale)
    h = min(round(math.sqrt(area * aspect)), height)
    w = min(round(math.sqrt(area / aspect)), width)
    contexts, targets = [], []
    while len(contexts) < batch_size:
        visible = torch.ones(frames, height, width, dtype=torch.int32)
        for _ in range(num_blocks):
            top = torch.randint(0, height - h + 1, (1,))
            left = torch.randint(0, width - w + 1, (1,))
            start = torch.randint(0, frames - duration + 1, (1,))
            block = torch.ones(frames, height, width, dtype=torch.int32)
            block[start : start + duration, top : top + h, left : left + w] = 0
            visible *= block
        context = torch.nonzero(visible.flatten()).squeeze(1)
        if len(context) > 0:  # else it is drawn again
            contexts.append(context)
            targets.append(torch.nonzero(visible.flatten() == 0).squeeze(1))
    lengths = [min(map(len, sets)) for sets in (contexts, targets)]
    return tuple(
        default_collate([index[:length] for index in sets])
        for sets, length in zip((contexts, targets), lengths, strict=True)
    )
