"""Attentive probe: cross-attention over frozen patch features, and a classifier."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import Dataset

from jepakit._checks import as_bool, as_int, as_number
from jepakit.evaluation._selection import as_candidates, held_out
from jepakit.evaluation.features import check_shared_classes, encode_batches, subset_loader
from jepakit.optim import param_groups
from jepakit.schedules import warmup_cosine

__all__ = ["attentive_probe"]

_BATCH_SIZE = 64  # images per step of the head's training
_DIVERGED = -1.0  # accuracy of a head with outputs that are not finite: below every fraction


def attentive_probe(
    encode: Callable[[Tensor], Tensor],
    train: Dataset[Any],
    test: Dataset[Any],
    *,
    prepare: Callable[[Tensor], Tensor] | None = None,
    num_heads: int = 4,
    epochs: int = 20,
    lr: float | Sequence[float] = (3e-4, 1e-3, 3e-3),
    weight_decay: float = 0.05,
    num_images: int = 5000,
    batch_size: int = 256,
    num_workers: int = 0,
    device: torch.device | str | int | None = None,
    seed: int = 0,
    views: bool = False,
) -> float:
    r"""Accuracy of a small attention head on the patch features of a frozen encoder, a fraction.

    $$p(y \mid x) = \mathrm{softmax}\, W \big(u + \mathrm{MLP}(\mathrm{LN}(u))\big), \qquad
        u = q + \mathrm{attention}(q; \mathrm{LN}(x_1), \dots, \mathrm{LN}(x_N))$$

    with one learned query $q$. Attention can select what only single patches hold, which the mean
    over patches loses. The head has far more parameters than a linear probe, so compare with an
    untrained encoder under the same head. Deterministic on the CPU. The encoder runs once for each
    image; its features stay in memory in float32, twice while they are collected.

    Args:
        encode: Maps a batch of images to patch features, `[b, ...]` to `[b, n, d]`, such as a
            `MaskedViT`. Modules are put in eval mode as in `extract_features`.
        train: `(image, label)` pairs that the head is fitted on.
        test: Pairs to classify; nothing is selected by them.
        num_heads: Attention heads; must divide the width of the features.
        epochs: Passes over the training features.
        lr: Peak learning rate of AdamW, reached after a tenth of the steps, then a cosine to 0. Of
            several, the one with the highest accuracy on a held-out, stratified fifth of the
            training images is taken (of equal ones the smallest), and the head trained anew on all.
        weight_decay: Weight decay of matrices.
        prepare, num_images, batch_size, num_workers: As in `evaluate`. The head takes 64 images in
            a step.
        device: Device to encode and train on. None is the CPU.
        seed: Seed of the head's initial weights and of the order of images; torch's own random
            states are left as they were.
        views: Items hold several views of an image or clips of a video, `[v, ...]` instead of
            `[...]`, each of which is encoded on its own. The head is trained on every view; in
            test, its probabilities are averaged over the views of an item. `JoinedClips` lets it
            attend to several clips at once.

    Raises:
        ValueError: If `encode` does not return `[b, n, d]`, the train set holds a single class or
            too few images to choose a learning rate, no test image has a class of the training
            images, or training diverged.

    Example:
        >>> import timm
        >>> from jepakit import MaskedViT
        >>> from jepakit.data import PixelStatistics, textured_shapes
        >>> train, test = textured_shapes(num_train=300, num_test=50)
        >>> encoder = MaskedViT(timm.create_model(
        ...     "vit_tiny_patch16_224", num_classes=0, img_size=48, depth=1))
        >>> accuracy = attentive_probe(
        ...     encoder, train, test, prepare=PixelStatistics.from_dataset(train), epochs=2)
        >>> 0 <= accuracy <= 1
        True

    Source:
        The attentive probe of CAE (arXiv:2202.03026) as in V-JEPA (arXiv:2404.08471), which
        averages over views in the same way. Difference: there it is trained on augmented images at
        one learning rate; here features are computed once, from whole images.
    """
    num_heads = as_int("num_heads", num_heads, minimum=1)
    epochs = as_int("epochs", epochs, minimum=1)
    views = as_bool("views", views)
    candidates = as_candidates("lr", lr)
    weight_decay = as_number("weight_decay", weight_decay, minimum=0)
    seed = as_int("seed", seed, minimum=0)

    def encode_set(dataset: Dataset[Any]) -> tuple[Tensor, Tensor]:
        loader = subset_loader(dataset, num_images, batch_size, num_workers)
        features, labels = encode_batches(
            encode, loader, prepare=prepare, device=device, axes=("b", "n", "d"), views=views
        )
        num_views = len(features) // len(labels)
        return features.view(len(labels), num_views, *features.shape[1:]), labels

    features, labels = encode_set(train)
    classes, class_indices = torch.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"train: must hold at least 2 classes, got only {int(classes[0])}")
    shape, width = tuple(features.flatten(0, 1).shape), features.shape[-1]
    if not features.numel():
        raise ValueError(f"encode: must return at least one feature per image, got {shape}")
    if width % num_heads:
        raise ValueError(f"num_heads={num_heads}: must divide the width of the features, {width}")
    test_features, test_labels = encode_set(test)
    check_shared_classes(labels, test_labels)
    if test_features.shape[-1] != width:
        widths = f"{width} for train and {test_features.shape[-1]} for test"
        raise ValueError(f"encode: must return features of one width, got {widths}")
    # -1 for a class that is not in the training set: no prediction equals it.
    known = torch.isin(test_labels, classes)
    test_indices = torch.where(known, torch.searchsorted(classes, test_labels), -1)
    fit = partial(
        _fit_head, features, class_indices, num_heads=num_heads, epochs=epochs,
        weight_decay=weight_decay, device=device, seed=seed,
    )  # fmt: skip
    # Autocast would cache half precision copies of the first step's weights and use them to judge.
    no_autocast = torch.autocast(torch.device(device or "cpu").type, enabled=False)
    with no_autocast, torch.device("cpu"):  # where features are, whatever the default device is
        all_rows, best = torch.arange(len(features)), candidates[0]
        if len(candidates) > 1:
            held = held_out(class_indices, "lr", candidates)
            fit_rows, held_rows = all_rows[~held], all_rows[held]
            # `max` returns the first of equals, so the smallest.
            best = max(
                candidates,
                key=lambda rate: _accuracy(fit(fit_rows, rate), features, class_indices, held_rows),
            )
        head = fit(all_rows, best)
        accuracy = _accuracy(head, test_features, test_indices, torch.arange(len(test_features)))
    if accuracy == _DIVERGED:
        raise ValueError(f"lr={lr}: the head's outputs are not finite; use a smaller learning rate")
    return accuracy


@torch.inference_mode(False)  # the caller may evaluate in inference mode
def _fit_head(
    features: Tensor,
    class_indices: Tensor,
    rows: Tensor,
    lr: float,
    *,
    num_heads: int,
    epochs: int,
    weight_decay: float,
    device: torch.device | str | int | None,
    seed: int,
) -> "_Head":
    # `torch.manual_seed` would also reset the accelerators' generators, and not restore them.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        head = _Head(features.shape[-1], num_heads, int(class_indices.max()) + 1)
    head.to(device, torch.float32)
    # Every view of the items is a row.
    num_views = features.shape[1]
    rows = (num_views * rows[:, None] + torch.arange(num_views)).flatten()
    features, class_indices = features.flatten(0, 1), class_indices.repeat_interleave(num_views)
    steps = epochs * math.ceil(len(rows) / _BATCH_SIZE)
    schedule = warmup_cosine(lr, 0.0, warmup_steps=steps // 10, steps=steps)
    optimizer = torch.optim.AdamW(param_groups(head, weight_decay))
    generator = torch.Generator().manual_seed(seed)
    step = 0
    for _ in range(epochs):
        order = torch.randperm(len(rows), generator=generator)
        for batch in torch.split(rows[order], _BATCH_SIZE):
            for group in optimizer.param_groups:
                group["lr"] = schedule(step)
            with torch.enable_grad():
                logits = head(features[batch].to(device))
                loss = F.cross_entropy(logits, class_indices[batch].to(device))
            torch.autograd.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    return head


@torch.no_grad()
def _accuracy(head: "_Head", features: Tensor, class_indices: Tensor, rows: Tensor) -> float:
    correct = []
    for batch in torch.split(rows, 4 * _BATCH_SIZE):
        logits = head(features[batch].flatten(0, 1).to(head.query.device)).cpu()
        if not logits.isfinite().all():
            return _DIVERGED
        by_view = logits.view(len(batch), -1, logits.shape[-1])
        scores = by_view[:, 0] if by_view.shape[1] == 1 else by_view.softmax(dim=-1).mean(dim=1)
        correct.append((scores.argmax(dim=1) == class_indices[batch]).double())
    return torch.cat(correct).mean().item()


class _Head(nn.Module):
    def __init__(self, width: int, num_heads: int, num_classes: int) -> None:
        super().__init__()
        self.query = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        wide, narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), wide, nn.GELU(), narrow)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, features: Float[Tensor, "b n d"]) -> Float[Tensor, "b classes"]:
        query, features = self.query.expand(len(features), -1, -1), self.norm(features)
        pooled = query + self.attention(query, features, features, need_weights=False)[0]
        return cast(Tensor, self.classifier((pooled + self.mlp(pooled)).squeeze(1)))
