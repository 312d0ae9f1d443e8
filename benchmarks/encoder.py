"""What `MaskedViT` costs over the bare backbone, and what dropping tokens saves.

    python benchmarks/encoder.py

Two ways are timed in turns, each round in another order, so that a machine that slows down slows
both. Reported: the median time of each, and the median of the rounds' ratios.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import timm
import torch

from jepakit import MaskedViT, TokenSet

CASES = [
    ("vit_tiny_patch16_224", 32, 8),
    ("vit_small_patch16_224", 224, 4),
    ("vit_small_patch16_dinov3", 224, 4),
]


def timed(call: Callable[[], torch.Tensor], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(
    a: Callable[[], torch.Tensor], b: Callable[[], torch.Tensor], rounds: int, device: torch.device
) -> tuple[float, float, float]:
    """Median milliseconds of `a` and of `b`, and the median of the rounds' `a / b`."""
    for _ in range(3):
        timed(a, device), timed(b, device)
    times: list[tuple[float, float]] = []
    for number in range(rounds):
        if number % 2:
            second, first = timed(b, device), timed(a, device)
        else:
            first, second = timed(a, device), timed(b, device)
        times.append((first, second))
    first, second = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    return first, second, statistics.median(x / y for x, y in times)


def random_context(
    grid_size: tuple[int, int], batch: int, fraction: float, device: torch.device, *, padded: bool
) -> TokenSet:
    size = grid_size[0] * grid_size[1]
    order = torch.rand(batch, size).argsort(dim=1)
    tokens = TokenSet.from_mask(order < round(fraction * size), grid_size).to(device)
    return TokenSet(tokens.idx, tokens.valid, grid_size, padded)


def report(name: str, size: int, batch: int, rounds: int, device: torch.device) -> None:
    backbone = timm.create_model(name, num_classes=0, img_size=size).eval().to(device)
    bare = timm.create_model(name, num_classes=0, img_size=size).eval().to(device)
    bare.load_state_dict(backbone.state_dict())
    encoder = MaskedViT(backbone)
    images = torch.randn(batch, 3, size, size, device=device)
    everything = TokenSet.full(encoder.grid_size, (batch,), device=device)
    masked = TokenSet(everything.idx, everything.valid, everything.grid_size, padded=True)
    quarter = random_context(encoder.grid_size, batch, 0.25, device, padded=False)
    ragged = random_context(encoder.grid_size, batch, 0.25, device, padded=True)

    print(f"\n{name}, {size} x {size} pixels, batch {batch}")
    print(f"{'':34}{'ms':>9}{'bare ms':>10}{'ratio':>8}")
    for label, context in (
        ("encoder(x)", None),
        ("everything, padded=False", everything),
        ("everything, padded=True", masked),
        ("25 % visible, padded=False", quarter),
        ("25 % visible, padded=True", ragged),
    ):
        ours, theirs, ratio = compare(
            lambda context=context: encoder(images, context),
            lambda: bare.forward_features(images),
            rounds,
            device,
        )
        print(f"{label:34}{ours:9.2f}{theirs:10.2f}{ratio:8.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if os.environ.get("JEPAKIT_TYPECHECK") == "1":
        raise SystemExit("JEPAKIT_TYPECHECK=1 would be timed too: unset it")
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    print(f"torch {torch.__version__}, {device}, {arguments.threads} thread(s)")
    with torch.inference_mode():
        for name, size, batch in CASES:
            report(name, size, batch, arguments.rounds, device)


if __name__ == "__main__":
    main()
