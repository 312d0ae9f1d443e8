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
from jepakit.evaluation._sets import check_shared_classes, held_out, some_images
from jepakit.evaluation.features import collect
from jepakit.optim import param_groups
from jepakit.schedules import warmup_cosine

__all__ = ["attentive_probe"]

_ROWS = 256  # that the head judges at once


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
    tokens are kept in memory, 4 bytes a number.

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
        batch_size: Images in a training step, and images encoded at once.
        num_workers: Processes that load images.
        device: Where images are encoded and the head is trained. None is the CPU.
        seed: Of the head's first weights and of the order of images; torch's own random state is
            left as it was.

    Returns:
        The fraction of test images that got their own label.

    Raises:
        TypeError: If a number is of a wrong type, or what `extract_features` raises.
        ValueError: If a number is out of its range, `num_heads` does not divide the width, `encode`
            does not return `[b, n, d]`, the train set holds a single class, or no test image has a
            class of the training images.

    Example:
        >>> import timm
        >>> from jepakit import MaskedViT
        >>> from jepakit.data import PixelStatistics, digit_canvases
        >>> from jepakit.evaluation import attentive_probe
        >>> train, test = digit_canvases(num_train=300, num_test=50)
        >>> encoder = MaskedViT(timm.create_model(
        ...     "vit_tiny_patch16_224", num_classes=0, in_chans=1, img_size=32, depth=1))
        >>> accuracy = attentive_probe(
        ...     encoder, train, test, prepare=PixelStatistics.of(train), epochs=2)
        >>> 0 <= accuracy <= 1
        True

    Source:
        The attentive probe of CAE (arXiv:2202.03026) as in V-JEPA (arXiv:2404.08471), which trains
        it on augmented images, at one learning rate; here tokens are encoded once, from whole
        images.
    """
    check_int("num_heads", num_heads, minimum=1)
    check_int("epochs", epochs, minimum=1)
    rates = sorted(set(lr)) if isinstance(lr, tuple) else [lr]
    if not rates:
        raise ValueError("lr=(): must hold at least one number")
    for rate in rates:
        check_number("lr", rate, positive=True)
    check_number("weight_decay", weight_decay, minimum=0)
    check_int("num_images", num_images, minimum=1)
    check_int("batch_size", batch_size, minimum=1)
    check_int("seed", seed, minimum=0)
    tokens, labels, unseen, theirs = (
        tensor
        for dataset in (train, test)
        for tensor in collect(
            encode,
            some_images(dataset, num_images, batch_size, num_workers),
            prepare=prepare,
            device=device,
            axes=("b", "n", "d"),
        )
    )
    check_shared_classes(labels, theirs)
    classes, numbers = torch.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"train: must hold at least 2 classes, got only {int(classes[0])}")
    width = tokens.shape[-1]
    if width % num_heads:
        raise ValueError(f"num_heads={num_heads}: must divide the width of the tokens, {width}")
    fit = partial(
        _fit, num_heads=num_heads, epochs=epochs, batch_size=batch_size, weight_decay=weight_decay,
        device=device, seed=seed,
    )  # fmt: skip
    if len(rates) > 1:
        held = held_out(numbers, "lr", lr)
        judged = tokens[held], numbers[held]
        accuracies = [
            _accuracy(fit(tokens[~held], numbers[~held], rate), *judged) for rate in rates
        ]
        # `index` finds the first of equals, so the smallest.
        rates = [rates[accuracies.index(max(accuracies))]]
    # A class that was never seen is nobody's answer.
    theirs = torch.where(torch.isin(theirs, classes), torch.searchsorted(classes, theirs), -1)
    return _accuracy(fit(tokens, numbers, rates[0]), unseen, theirs)


def _fit(
    tokens: Tensor,
    labels: Tensor,
    lr: float,
    *,
    num_heads: int,
    epochs: int,
    batch_size: int,
    weight_decay: float,
    device: torch.device | str | None,
    seed: int,
) -> nn.Module:
    """A head, trained on tokens that lie in the host's memory; labels from 0 on."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = _Head(tokens.shape[-1], num_heads, int(labels.max()) + 1).to(device)
    steps = epochs * math.ceil(len(tokens) / batch_size)
    schedule = warmup_cosine(lr, 0.0, warmup_steps=steps // 10, steps=steps)
    optimizer = torch.optim.AdamW(param_groups(head, weight_decay))
    generator = torch.Generator().manual_seed(seed)
    step = 0
    for _ in range(epochs):
        order = torch.randperm(len(tokens), generator=generator, device="cpu")
        for rows in torch.split(order, batch_size):
            for group in optimizer.param_groups:
                group["lr"] = schedule(step)
            with torch.enable_grad():  # evaluations stand in no_grad
                loss = F.cross_entropy(head(tokens[rows].to(device)), labels[rows].to(device))
            torch.autograd.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    return head


@torch.no_grad()
def _accuracy(head: nn.Module, tokens: Tensor, labels: Tensor) -> float:
    device = next(head.parameters()).device
    told = [head(some.to(device)).argmax(dim=1).cpu() for some in torch.split(tokens, _ROWS)]
    return (torch.cat(told) == labels).double().mean().item()


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
