"""Time of `HierarchicalPyramid`, forward and backward, relative to a ViT-S/16 training step.

    python benchmarks/pyramid.py --write benchmarks/results/pyramid.json

By default 14 x 14 features of width 384, batch 64 and three levels. The step is forward, backward
and AdamW of timm's `vit_small_patch16_224` on full images. Both are timed in turn within one run;
the table shows the medians of the rounds as ratios to the step.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from runs import save
from timing import in_turns

from jepakit import HierarchicalPyramid, TokenSet

GRID, DIM = (14, 14), 384
KINDS = ("whole", "quarter")
MAPS = {"projection": "linear", "norm": "layer"}
CASES: dict[str, dict[str, Any]] = {
    '`pool="avg"`': {},
    '`pool="max"`': {"pool": "max"},
    '`pool="attention"`': {"pool": "attention"},
    '`pool="conv"`': {"pool": "conv"},
    '`"avg"`, `fusion="fpn-add"`': {"fusion": "fpn-add"},
    'the same with `upsample="bilinear"`': {"fusion": "fpn-add", "upsample": "bilinear"},
    '`"avg"`, `fusion="fpn-concat"`': {"fusion": "fpn-concat"},
    '`"avg"`, `projection`, `norm`': MAPS,
    '`"avg"`, `fusion="fpn-add"`, `projection`, `norm`': {"fusion": "fpn-add", **MAPS},
}


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
        # Without maps level 0 is the input itself, which is a leaf and accumulates a gradient.
        torch.autograd.backward(outputs, gradients)
        features.grad = None
        pyramid.zero_grad()

    return call


def quarter(batch: int, device: torch.device) -> TokenSet:
    """Random sets of about a quarter of the grid, padded, like contexts."""
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
    parser.add_argument(
        "--write", type=Path, help="result file, .json; the table is written beside it"
    )
    parser.set_defaults(data="random tokens", seeds=[0])
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    context = quarter(arguments.batch, device)

    step = training_step(arguments.batch, device)
    calls = {"step": step}
    for name, options in CASES.items():
        for kind, tokens in zip(KINDS, (None, context), strict=True):
            calls[f"{name}, {kind}"] = pyramid_call(options, arguments.batch, tokens, device)
    times = in_turns(calls, arguments.rounds, device)
    medians = {name: statistics.median(values) for name, values in times.items()}
    reference = medians["step"]
    rows = [
        {
            "name": name,
            "step_ms": 1e3 * reference,
            **{f"{kind}_ms": 1e3 * medians[f"{name}, {kind}"] for kind in KINDS},
        }
        for name in CASES
    ]
    values = (
        f"medians of {arguments.rounds} rounds on {arguments.threads} thread(s), beside a step of "
        f"{reference:.2f} s with {arguments.batch} images"
    )
    save(arguments, rows, table, arguments.device, values)


def table(rows: list[dict[str, Any]]) -> str:
    """Time of each pyramid as a fraction of the step."""
    lines = ["| | all tokens | a quarter, padded |", "|---|---|---|"]
    for row in rows:
        ratios = [f"{row[f'{kind}_ms'] / row['step_ms']:.2%}" for kind in KINDS]
        lines.append(f"| {row['name']} | {' | '.join(ratios)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
