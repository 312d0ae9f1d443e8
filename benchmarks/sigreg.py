"""Memory and time of `sigreg`, forward and backward, beside the same sums in plain autograd.

    python benchmarks/sigreg.py --write benchmarks/results/sigreg.json

Extra memory is the peak of the process (or of the device) above its memory after the features were
made and one small call was done. Each implementation runs in its own process, since a peak never
falls.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from runs import save

from jepakit.losses import sigreg


def plain(x: torch.Tensor, num_slices: int, generator: torch.Generator) -> torch.Tensor:
    """All projections at all points at once, as in the formula."""
    slices = torch.randn(x.shape[1], num_slices, generator=generator).to(x.device)
    t = torch.linspace(0, 3, 17, device=x.device)
    angles = (x @ (slices / slices.norm(dim=0))).unsqueeze(-1) * t
    normal = torch.exp(-t.square() / 2)
    gaps = (angles.cos().mean(dim=0) - normal).square() + angles.sin().mean(dim=0).square()
    return 2 * len(x) * torch.trapezoid(gaps * normal, t).mean()


def ours(x: torch.Tensor, num_slices: int, generator: torch.Generator) -> torch.Tensor:
    return sigreg(x, num_slices=num_slices, generator=generator)


IMPLEMENTATIONS = {"jepakit": ours, "plain autograd": plain}


def peak_megabytes(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measure(
    implementation: str, rows: int, dim: int, num_slices: int, device: torch.device
) -> dict[str, float]:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, dim, generator=generator).to(device).requires_grad_()
    IMPLEMENTATIONS[implementation](x[:64], 64, generator).backward()
    x.grad = None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    before, start = peak_megabytes(device), time.perf_counter()
    value = IMPLEMENTATIONS[implementation](x, num_slices, torch.Generator().manual_seed(1))
    value.backward()
    result = {"value": value.item(), "gradient": x.grad.norm().item()}
    return result | {
        "seconds": time.perf_counter() - start,
        "megabytes": peak_megabytes(device) - before,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--slices", type=int, default=1024)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--implementation", choices=list(IMPLEMENTATIONS), help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, help="result file, .json; its table beside it")
    parser.set_defaults(data="random features", seeds=[0])
    args = parser.parse_args()
    if args.implementation:
        device = torch.device(args.device)
        result = measure(args.implementation, args.rows, args.dim, args.slices, device)
        print(json.dumps(result))
        return
    rows = []
    for name in IMPLEMENTATIONS:
        command = [sys.executable, __file__, *sys.argv[1:], "--implementation", name]
        run = subprocess.run(command, capture_output=True, text=True, env=os.environ)
        if run.returncode:
            raise SystemExit(f"{name} failed: {run.stderr.strip()}")
        rows.append({"name": name, **json.loads(run.stdout)})
    shape = f"{args.rows} x {args.dim} features, {args.slices} slices, float32, one thread"
    save(args, rows, table, args.device, shape)


def table(rows: list[dict[str, Any]]) -> str:
    """Memory and time of each implementation, and their equal values and gradients."""
    lines = ["| | extra MB | seconds | value | gradient's length |", "|---|---|---|---|---|"]
    for row in rows:
        cells = [f"{row['megabytes']:.0f}", f"{row['seconds']:.1f}"]
        cells += [f"{row['value']:.6f}", f"{row['gradient']:.6f}"]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
