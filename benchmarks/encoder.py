"""What `MaskedViT` costs over the bare backbone, and what dropping tokens saves.

    python benchmarks/encoder.py --write benchmarks/results/encoder.json

Reported are the medians of the rounds' ratios to the bare backbone, timed in the same round.
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
WAYS = ("encoder(x)", "everything", "everything, padded", "25 % visible", "25 % visible, padded")

CASES = [
    ("vit_tiny_patch16_224", 32, 8),
    ("vit_small_patch16_224", 224, 4),
    ("vit_small_patch16_dinov3", 224, 4),
]


def random_context(
    grid_size: tuple[int, int], batch: int, fraction: float, device: torch.device, *, padded: bool
) -> TokenSet:
    size = grid_size[0] * grid_size[1]
    order = torch.rand(batch, size).argsort(dim=1)
    tokens = TokenSet.from_mask(order < round(fraction * size), grid_size).to(device)
    return TokenSet(tokens.idx, tokens.valid, grid_size, padded)


def measured(name: str, size: int, batch: int, rounds: int, device: torch.device) -> Row:
    """Milliseconds of each way, and the median of its rounds' ratios to the bare backbone."""
    backbone = timm.create_model(name, num_classes=0, img_size=size).eval().to(device)
    bare = timm.create_model(name, num_classes=0, img_size=size).eval().to(device)
    bare.load_state_dict(backbone.state_dict())
    encoder = MaskedViT(backbone)
    images = torch.randn(batch, 3, size, size, device=device)
    everything = TokenSet.full(encoder.grid_size, (batch,), device=device)
    masked = TokenSet(everything.idx, everything.valid, everything.grid_size, padded=True)
    quarter = random_context(encoder.grid_size, batch, 0.25, device, padded=False)
    ragged = random_context(encoder.grid_size, batch, 0.25, device, padded=True)
    contexts = dict(zip(WAYS, (None, everything, masked, quarter, ragged), strict=True))
    calls = {way: partial(encoder, images, context) for way, context in contexts.items()}
    times = in_turns({"bare": partial(bare.forward_features, images), **calls}, rounds, device)
    row: Row = {"name": name, "image_size": size, "batch_size": batch}
    row["ms"] = {way: 1e3 * statistics.median(values) for way, values in times.items()}
    row["ratio"] = {
        way: statistics.median(a / b for a, b in zip(times[way], times["bare"], strict=True))
        for way in WAYS
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
        rows = [measured(*case, args.rounds, device) for case in CASES]
    values = f"medians of {args.rounds} rounds on {args.threads} thread(s)"
    save(args, rows, table, args.device, values)


def table(rows: list[Row]) -> str:
    """Time of each way as a share of the bare backbone's."""
    lines = [f"| | {' | '.join(WAYS)} |", "|---" * (1 + len(WAYS)) + "|"]
    for row in rows:
        size = row["image_size"]
        head = f"{row['name']} at {size} x {size} pixels, batch {row['batch_size']}"
        ratios = [f"{row['ratio'][way]:.3f}" for way in WAYS]
        lines.append(f"| {head} | {' | '.join(ratios)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
