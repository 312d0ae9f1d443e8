"""Time of `MaskedViT`, with all patches and with a context, relative to the bare backbone.

    python benchmarks/encoder.py --write benchmarks/results/encoder.json

Ratios are to the bare backbone in the same round; the median over rounds is reported.
"""

import argparse
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from runs import save
from timing import in_turns

from jepakit import MaskedViT, TokenSet

Row = dict[str, Any]
# Contexts: None, all patches, and a quarter of them, the last two also with padding allowed.
CALLS = ("encoder(x)", "everything", "everything, padded", "25 % visible", "25 % visible, padded")

CASES = [
    ("vit_tiny_patch16_224", 32, 8),
    ("vit_small_patch16_224", 224, 4),
    ("vit_small_patch16_dinov3", 224, 4),
]


def random_context(
    grid_size: tuple[int, int], batch: int, fraction: float, device: torch.device, *, padded: bool
) -> TokenSet:
    """Contexts of a fraction of the patches each; `padded` only sets the flag."""
    size = grid_size[0] * grid_size[1]
    order = torch.rand(batch, size).argsort(dim=1)
    tokens = TokenSet.from_mask(order < round(fraction * size), grid_size).to(device)
    return TokenSet(tokens.idx, tokens.valid, grid_size, padded)


def measure(name: str, size: int, batch: int, rounds: int, device: torch.device) -> Row:
    """Milliseconds of each call, and the median of its ratios to the bare backbone."""
    backbone = timm.create_model(name, num_classes=0, img_size=size).eval().to(device)
    bare = timm.create_model(name, num_classes=0, img_size=size).eval().to(device)
    bare.load_state_dict(backbone.state_dict())
    encoder = MaskedViT(backbone)
    images = torch.randn(batch, 3, size, size, device=device)
    full = TokenSet.full(encoder.grid_size, (batch,), device=device)
    full_padded = TokenSet(full.idx, full.valid, full.grid_size, padded=True)
    quarter = random_context(encoder.grid_size, batch, 0.25, device, padded=False)
    quarter_padded = random_context(encoder.grid_size, batch, 0.25, device, padded=True)
    contexts = (None, full, full_padded, quarter, quarter_padded)
    calls = {
        name: partial(encoder, images, context)
        for name, context in zip(CALLS, contexts, strict=True)
    }
    times = in_turns({"bare": partial(bare.forward_features, images), **calls}, rounds, device)
    row: Row = {"name": name, "image_size": size, "batch_size": batch}
    row["ms"] = {call: 1e3 * statistics.median(values) for call, values in times.items()}
    row["ratio"] = {
        call: statistics.median(a / b for a, b in zip(times[call], times["bare"], strict=True))
        for call in CALLS
    }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", type=Path, help="result file, .json; its table beside it")
    parser.set_defaults(data="random images", seeds=[0])
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    with torch.inference_mode():
        rows = [measure(*case, args.rounds, device) for case in CASES]
    values = f"medians of {args.rounds} rounds on {args.threads} thread(s)"
    save(args, rows, table, args.device, values)


def table(rows: list[Row]) -> str:
    """Time of each call relative to the bare backbone."""
    lines = [f"| | {' | '.join(CALLS)} |", "|---" * (1 + len(CALLS)) + "|"]
    for row in rows:
        size = row["image_size"]
        head = f"{row['name']} at {size} x {size} pixels, batch {row['batch_size']}"
        ratios = [f"{row['ratio'][call]:.3f}" for call in CALLS]
        lines.append(f"| {head} | {' | '.join(ratios)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
