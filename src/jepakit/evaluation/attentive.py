"""Attentive probe: cross-attention over frozen patch tokens, and a classifier."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import Dataset

from jepakit._checks import check_int, check_number
from jepakit.evaluation._sets import check_shared_classes, choices, held_out, some_images
from jepakit.evaluation.features import collect
from jepakit.optim import param_groups
from jepakit.schedules import warmup_cosine

__all__ = ["attentive_probe"]

_STEP = 64  # images in a step of the head's training
_DIVERGED = -1.0


def attentive_probe(
    encode: Callable[[Tensor], Tensor],
    train: Dataset[Any],
    test: Dataset[Any],
    *,
    prepare: Callable[[Tensor], Tensor] | None = None,
    num_heads: int = 4,
    epochs: int = 20,
    lr: float | tuple[float, ...] = (3e-4, 1e-3, 3e-3),
    weight_decay: float = 0.05,
    num_images: int = 5000,
    batch_size: int = 256,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    seed: int = 0,
) -> float:
    r"""Accuracy of a small head that attends to the tokens of a frozen encoder.

    $$p(y \mid x) = \mathrm{softmax}\, W \big(u + \mathrm{MLP}(\mathrm{LN}(u))\big), \qquad
        u = q + \mathrm{attention}(q; \mathrm{LN}(x_1), \dots, \mathrm{LN}(x_N))$$

    with one learned query $q$. A mean of tokens, which linear probe and neighbours see, loses what
    lies in single patches; a head that may choose among them does not. It has far more parameters
    than a linear probe, so compare with an untrained encoder under the same head. Deterministic on
    the CPU. The encoder runs once for each image, without gradient, and is never touched; its
    tokens are kept in memory, 4 bytes a number, and twice that while they are collected.

    Args:
        encode: Maps a batch of images to their tokens, `[b, ...]` to `[b, n, d]`, such as a
            `MaskedViT`. Modules are put in eval mode as in `extract_features`.
        train: `(image, label)` pairs that the head is fitted on.
        test: Pairs to classify; nothing is chosen by them.
        prepare: What happens to images before they are encoded, as for `extract_features`.
        num_heads: Attention heads; divides the width of the tokens.
        epochs: Passes over the training tokens.
        lr: Peak learning rate of AdamW, reached after a tenth of the steps, then a cosine to 0. Of
            several, the one with the highest accuracy on a held-out, stratified fifth of the
            training images is taken (of equal ones the smallest), and the head trained anew on all.
        weight_decay: Of matrices.
        num_images: How many of each set to use at most: drawn at random from all over it, the same
            in every call.
        batch_size: Images encoded at once; no result depends on it. The head takes 64 in a step.
        num_workers: Processes that load images.
        device: Where images are encoded and the head is trained. None is the CPU.
        seed: Of the head's first weights and of the order of images; torch's own random states are
            left as they were.

    Returns:
        The fraction of test images that got their own label.

    Raises:
        TypeError: If a number is of a wrong type, or what `extract_features` raises.
        ValueError: If a number is out of its range, `num_heads` does not divide the width, `encode`
            does not return `[b, n, d]`, the train set holds a single class or too few images to
            choose a rate, no test image has a class of the training images, or the head's answers
            on the test set are not finite.

    Example:
        >>> import timm
        >>> from jepakit import MaskedViT
        >>> from jepakit.data import PixelStatistics, digit_canvases
        >>> from jepakit.evaluation import attentive_probe
        >>> train, test = digit_canvases(num_train=300, num_test=50)
        >>> encoder = MaskedViT(timm.create_model(
        ...     "vit_tiny_patch16_224", num_classes=0, in_chans=1, img_size=32, depth=1))
        >>> accuracy = attentive_probe(
        ...     encoder, train, test, prepare=PixelStatistics.from_dataset(train), epochs=2)
        >>> 0 <= accuracy <= 1
        True

    Source:
        The attentive probe of CAE (arXiv:2202.03026) as in V-JEPA (arXiv:2404.08471), which trains
        it on augmented images, at one learning rate; here tokens are encoded once, from whole
        images.
    """
    check_int("num_heads", num_heads, minimum=1)
    check_int("epochs", epochs, minimum=1)
    rates = choices("lr", lr)
    check_number("weight_decay", weight_decay, minimum=0)
    check_int("num_images", num_images, minimum=1)
    check_int("batch_size", batch_size, minimum=1)
    check_int("seed", seed, minimum=0)

    def encoded(dataset: Dataset[Any]) -> tuple[Tensor, Tensor]:
        loader = some_images(dataset, num_images, batch_size, num_workers)
        return collect(encode, loader, prepare=prepare, device=device, axes=("b", "n", "d"))

    tokens, labels = encoded(train)
    classes, numbers = torch.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"train: must hold at least 2 classes, got only {int(classes[0])}")
    if not tokens.numel():
        raise ValueError(f"encode: must return tokens, got {tuple(tokens.shape)} for all of train")
    width = tokens.shape[-1]
    if width % num_heads:
        raise ValueError(f"num_heads={num_heads}: must divide the width of the tokens, {width}")
    unseen, theirs = encoded(test)
    check_shared_classes(labels, theirs)
    if unseen.shape[-1] != width:
        raise ValueError(
            f"encode: must return tokens of one width, got {width} for train and "
            f"{unseen.shape[-1]} for test"
        )
    # A class that was never seen is nobody's answer.
    theirs = torch.where(torch.isin(theirs, classes), torch.searchsorted(classes, theirs), -1)
    fit = partial(
        _fit, tokens, numbers, num_heads=num_heads, epochs=epochs, weight_decay=weight_decay,
        device=device, seed=seed,
    )  # fmt: skip
    # Autocast would keep the first step's weights in its half type and judge the head by them.
    exact = torch.autocast(torch.device(device or "cpu").type, enabled=False)
    with exact, torch.device("cpu"):  # where tokens are, whatever is the default
        everything, best = torch.arange(len(tokens)), rates[0]
        if len(rates) > 1:
            held = held_out(numbers, "lr", lr)
            seen, judging = everything[~held], everything[held]
            # `max` finds the first of equals, so the smallest.
            best = max(rates, key=lambda rate: _accuracy(fit(seen, rate), tokens, numbers, judging))
        accuracy = _accuracy(fit(everything, best), unseen, theirs, torch.arange(len(unseen)))
    if accuracy == _DIVERGED:
        raise ValueError(f"lr={lr}: the head's answers are not finite; smaller ones are needed")
    return accuracy


@torch.inference_mode(False)  # evaluations may stand in it
def _fit(
    tokens: Tensor,
    labels: Tensor,
    rows: Tensor,
    lr: float,
    *,
    num_heads: int,
    epochs: int,
    weight_decay: float,
    device: torch.device | str | None,
    seed: int,
) -> "_Head":
    """A head, trained on some rows; labels are from 0 on."""
    # `torch.manual_seed` would reset the accelerators' generators, too, and for good.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        head = _Head(tokens.shape[-1], num_heads, int(labels.max()) + 1)
    head.to(device, torch.float32)
    steps = epochs * math.ceil(len(rows) / _STEP)
    schedule = warmup_cosine(lr, 0.0, warmup_steps=steps // 10, steps=steps)
    optimizer = torch.optim.AdamW(param_groups(head, weight_decay))
    generator = torch.Generator().manual_seed(seed)
    step = 0
    for _ in range(epochs):
        order = torch.randperm(len(rows), generator=generator)
        for some in torch.split(rows[order], _STEP):
            for group in optimizer.param_groups:
                group["lr"] = schedule(step)
            with torch.enable_grad():
                loss = F.cross_entropy(head(tokens[some].to(device)), labels[some].to(device))
            torch.autograd.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    return head


@torch.no_grad()
def _accuracy(head: "_Head", tokens: Tensor, labels: Tensor, rows: Tensor) -> float:
    """The fraction of rows that got their own label; below every fraction if the head diverged."""
    right = []
    for some in torch.split(rows, 4 * _STEP):
        answers = head(tokens[some].to(head.query.device)).cpu()
        if not answers.isfinite().all():
            return _DIVERGED
        right.append((answers.argmax(dim=1) == labels[some]).double())
    return torch.cat(right).mean().item()


class _Head(nn.Module):
    def __init__(self, width: int, num_heads: int, num_classes: int) -> None:
        super().__init__()
        self.query = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        hidden = 4 * width
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        )
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b classes"]:
        query, tokens = self.query.expand(len(tokens), -1, -1), self.norm(tokens)
        pooled = query + self.attention(query, tokens, tokens, need_weights=False)[0]
        return cast(Tensor, self.classifier((pooled + self.mlp(pooled)).squeeze(1)))
