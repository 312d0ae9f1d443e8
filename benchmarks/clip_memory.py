"""Bytes that a step of V-JEPA keeps for the backward pass, by the length of the clip.

    python benchmarks/clip_memory.py --write benchmarks/results/clip_memory.json

ViT-L/16 on tubelets of 2x16x16 at 224 pixels, a predictor of 12 blocks 384 wide, float32, fused
attention, `vjepa_masks` with fixed contexts. Every storage that autograd keeps counts, the pixels
of the contexts included, parameters not; for checkpointed blocks that is their input. Tensors are
fake, so nothing is computed and the figures do not depend on the machine.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from clip_step import LARGE, TUBELET, Size, Step
from runs import save
from step import fake_mode_of
from step_costs import count, fake_mode, to_fake

from jepakit.masking import vjepa_masks

FRAMES = (4, 8, 16, 32, 64)
SIDE = 224


def kept_bytes(frames: int, *, checkpointing: bool, size: Size = LARGE) -> int:
    """Bytes for one clip."""
    grid = (frames // TUBELET[0], SIDE // TUBELET[1], SIDE // TUBELET[2])
    sets = vjepa_masks(grid)(1, generator=torch.Generator().manual_seed(0))
    with torch.device("meta"):
        step = Step(size, grid)
    modules = step.encoder, step.predictor, step.teacher
    for module in modules[:2]:
        module.set_grad_checkpointing(checkpointing)
    with fake_mode():
        for module in modules:
            to_fake(module)
        clips = torch.zeros(1, 3, frames, SIDE, SIDE)
    with fake_mode_of(clips):
        cost = count(lambda: step.loss(clips, sets), modules, batch_size=1)
    return round(cost.saved_bytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="result file, .json")
    args = parser.parse_args()
    args.data, args.seeds = "none", [0]
    rows = [
        {
            "frames": frames,
            "tokens": frames // TUBELET[0] * (SIDE // TUBELET[1]) * (SIDE // TUBELET[2]),
            "bytes": kept_bytes(frames, checkpointing=False),
            "checkpointed": kept_bytes(frames, checkpointing=True),
        }
        for frames in FRAMES
    ]
    save(args, rows, table, values="bytes kept for one clip, counted on fake tensors")


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| frames | tokens | kept, MiB | with checkpointing, MiB |", "|---|---|---|---|"]
    for row in rows:
        kept, less = (row[key] / 2**20 for key in ("bytes", "checkpointed"))
        lines.append(f"| {row['frames']} | {row['tokens']} | {kept:.0f} | {less:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
