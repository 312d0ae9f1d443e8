"""What `HierarchicalPyramid` costs: forward and backward, as a share of a ViT-S/16 training step.

    python benchmarks/pyramid.py

14 x 14 tokens of width 384, batch 64, three levels, by default. The step is timm's
`vit_small_patch16_224` on whole images: forward, backward and AdamW. Both are timed in turns within
one run; reported are medians of the rounds and the ratio of each pyramid to the step.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import timm
import torch

from jepakit import HierarchicalPyramid, TokenSet

GRID, DIM = (14, 14), 384
CASES: dict[str, dict[str, Any]] = {
    "avg": {},
    "max": {"pool": "max"},
    "attention": {"pool": "attention"},
    "conv": {"pool": "conv"},
    "avg, fpn-add": {"fusion": "fpn-add"},
    "avg, fpn-add, bilinear": {"fusion": "fpn-add", "upsample": "bilinear"},
    "avg, fpn-concat": {"fusion": "fpn-concat"},
    "avg, projection, norm": {"projection": "linear", "norm": "layer"},
    "avg, fpn-add, projection, norm": {
        "fusion": "fpn-add",
        "projection": "linear",
        "norm": "layer",
    },
}


def timed(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def training_step(batch: int, device: torch.device) -> Callable[[], object]:
    model = timm.create_model("vit_small_patch16_224", num_classes=0).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images = torch.randn(batch, 3, 224, 224, device=device)

    def step() -> None:
        model.forward_features(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def pyramid_call(
    arguments: dict[str, Any], batch: int, tokens: TokenSet | None, device: torch.device
) -> Callable[[], object]:
    pyramid = HierarchicalPyramid(GRID, DIM, num_levels=3, **arguments).to(device)
    n = GRID[0] * GRID[1] if tokens is None else tokens.shape[1]
    features = torch.randn(batch, n, DIM, device=device, requires_grad=True)
    gradients = [torch.randn_like(level.features) for level in pyramid(features, tokens)]

    def call() -> None:
        outputs = [level.features for level in pyramid(features, tokens)]
        # Level 0 of a pyramid without maps is what came in, so it has a gradient of its own.
        torch.autograd.backward(outputs, gradients)
        features.grad = None
        pyramid.zero_grad()

    return call


def quarter(batch: int, device: torch.device) -> TokenSet:
    """About a quarter of the grid for each sample, padded, as masks have it."""
    size = GRID[0] * GRID[1]
    counts = torch.randint(size // 5, size // 3, (batch, 1))
    tokens = TokenSet.from_mask(torch.rand(batch, size).argsort(dim=1) < counts, GRID)
    return tokens.to(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if os.environ.get("JEPAKIT_TYPECHECK") == "1":
        raise SystemExit("JEPAKIT_TYPECHECK=1 would be timed too: unset it")
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    context = quarter(arguments.batch, device)

    step = training_step(arguments.batch, device)
    calls = {
        (name, kind): pyramid_call(options, arguments.batch, tokens, device)
        for name, options in CASES.items()
        for kind, tokens in (("whole", None), ("quarter", context))
    }
    for call in (step, *calls.values()):
        timed(call, device)
    steps: list[float] = []
    times: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for number in range(arguments.rounds):
        # The step in the middle of every other round, so that none has the machine to itself.
        order = list(calls) if number % 2 else list(reversed(calls))
        half = len(order) // 2
        for key in order[:half]:
            times[key].append(timed(calls[key], device))
        steps.append(timed(step, device))
        for key in order[half:]:
            times[key].append(timed(calls[key], device))

    reference = statistics.median(steps)
    print(f"torch {torch.__version__}, {device}, {arguments.threads} thread(s)")
    print(f"ViT-S/16 training step, batch {arguments.batch}: {1e3 * reference:.0f} ms\n")
    print(f"{'':32}{'whole, ms':>12}{'of step':>10}{'quarter, ms':>14}{'of step':>10}")
    for name in CASES:
        row = f"{name:32}"
        for kind, width in (("whole", 12), ("quarter", 14)):
            value = statistics.median(times[name, kind])
            row += f"{1e3 * value:{width}.1f}{value / reference:10.2%}"
        print(row)


if __name__ == "__main__":
    main()
