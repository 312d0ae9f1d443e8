"""Time of `EMATeacher.update` relative to one bare `torch._foreach_lerp_` on the same tensors.

    python benchmarks/teacher.py --write benchmarks/results/teacher.json

Beside it, the same average as a loop over `named_parameters`, as training scripts write it. Ratios
are to the bare call in the same round; the median over rounds is reported.
"""

import argparse
import copy
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from runs import save
from timing import in_turns
from torch import nn

from jepakit import EMATeacher

Row = dict[str, Any]
CALLS = ("EMATeacher.update", "loop over named_parameters")


def small_blocks() -> nn.Module:
    """The 144 tensors of 12 transformer blocks, 5.3 million numbers."""
    return nn.Sequential(*[timm.models.vision_transformer.Block(192, 4, True) for _ in range(12)])


def vit_small() -> nn.Module:
    return timm.create_model("vit_small_patch16_224", num_classes=0)


CASES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "144 small tensors (12 blocks of width 192)": (small_blocks, 50),
    "ViT-S/16 at 224": (vit_small, 2),
}


@torch.no_grad()
def loop(average: nn.Module, student: nn.Module) -> None:
    sources = dict(student.named_parameters())
    for name, parameter in average.named_parameters():
        parameter.lerp_(sources[name], 0.01)


def measure(name: str, rounds: int, device: torch.device) -> Row:
    """Milliseconds of each call, and the median of its ratios to the bare call."""
    build, repeats = CASES[name]
    student = build().to(device)
    teacher = EMATeacher(student, 0.99)
    bare, looped = (copy.deepcopy(student).requires_grad_(False) for _ in range(2))
    averages, sources = list(bare.parameters()), [p.detach() for p in student.parameters()]
    calls = {
        "bare": partial(torch._foreach_lerp_, averages, sources, 0.01),
        "EMATeacher.update": partial(teacher.update, student),
        "loop over named_parameters": partial(loop, looped, student),
    }
    times = in_turns(calls, rounds, device, repeats=repeats)
    row: Row = {"name": name, "tensors": len(averages), "modules": len(list(student.modules()))}
    row["ms"] = {call: 1e3 * statistics.median(values) for call, values in times.items()}
    row["ratio"] = {
        call: statistics.median(a / b for a, b in zip(times[call], times["bare"], strict=True))
        for call in CALLS
    }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", type=Path, help="result file, .json; its table beside it")
    parser.set_defaults(data="random weights", seeds=[0])
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    rows = [measure(name, args.rounds, device) for name in CASES]
    values = f"medians of {args.rounds} rounds on {args.threads} thread(s)"
    save(args, rows, table, args.device, values)


def table(rows: list[Row]) -> str:
    """Time of each call relative to the bare one."""
    lines = [f"| | bare, ms | {' | '.join(CALLS)} |", "|---" * (2 + len(CALLS)) + "|"]
    for row in rows:
        ratios = [f"{row['ratio'][call]:.2f}" for call in CALLS]
        lines.append(f"| {row['name']} | {row['ms']['bare']:.2f} | {' | '.join(ratios)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
