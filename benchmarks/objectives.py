"""Objectives side by side at equal compute: I-JEPA, C-JEPA, LeJEPA, contrastive and others.

    python benchmarks/objectives.py --data digits --out objectives-digits
    python benchmarks/objectives.py --data digits --out objectives-digits --only lejepa --seeds 3

Each row is a run of an example in `examples/`, in a process of its own, with the example's own
defaults but for what stands in `METHODS`. What is equal is the arithmetic of training: the floating
point operations of all matrix products in a step, forward and backward, of everything that is
trained and of the teacher, counted by torch in a few real steps. The first method gets `--steps`
steps, every other one as many as cost the same. Batch sizes, learning rates and views are each
example's own, so the number of images differs, and it is reported, as are the seconds.

A run whose `result.json` is in `--out` is not run again, so a table can be made over several calls.
"""

import argparse
import json
import os
import platform
import runpy
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
# What is run for each row: the example, and its options.
METHODS: dict[str, tuple[str, list[str]]] = {
    "ijepa": ("ijepa.py", []),
    "cjepa": ("ijepa.py", ["--vicreg-weight", "0.01"]),
    "lejepa": ("lejepa.py", []),
    "info_nce": ("lejepa.py", ["--objective", "info_nce"]),
    "vicreg": ("lejepa.py", ["--objective", "vicreg"]),
    "barlow": ("lejepa.py", ["--objective", "barlow"]),
    "koleo": ("lejepa.py", ["--objective", "koleo"]),
    "none": ("lejepa.py", ["--objective", "none"]),
}
TRAINED = {"ijepa.py": "trained teacher", "lejepa.py": "trained encoder"}
COUNTED_STEPS = 8


def main() -> None:
    args = parse_args()
    if args.count:
        print(json.dumps(operations_per_step(args.count, args.options)))
        return
    out, common = Path(args.out), ["--data", args.data, "--device", args.device, *args.options]
    out.mkdir(parents=True, exist_ok=True)
    per_step = {name: counted(name, common) for name in {"ijepa": 0} | dict.fromkeys(args.only)}
    budget = args.steps * per_step["ijepa"]
    runs: dict[str, list[dict[str, Any]]] = {}
    for name in args.only:
        steps = max(1, round(budget / per_step[name]))
        print(f"{name}: {steps} steps of {per_step[name] / 1e9:.3f} GFLOP", flush=True)
        runs[name] = [train(name, steps, seed, common, out) for seed in args.seeds]
    rows = rows_of(runs)
    summary = {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "commit": commit(),
        "seeds": args.seeds,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "dataset": args.data,
        "gflop_per_run": budget / 1e9,
        "gflop_per_step": {name: count / 1e9 for name, count in per_step.items()},
        "rows": rows,
    }
    (out / "objectives.json").write_text(json.dumps(summary, indent=1))
    print("\n| | kNN-20 | linear probe | effective rank | images | seconds |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['name']} | {percent(row['knn'])} | {percent(row['linear'])} | "
            f"{spread(row['rank'])} | {row['images'] or ''} | "
            f"{spread(row['seconds'], 0) if row['seconds'] else ''} |"
        )


def operations_per_step(example: str, options: list[str]) -> float:
    """Of the matrix products: two short runs, of which all but the steps is the same."""
    counts = []
    for steps in (1, 1 + COUNTED_STEPS):
        with tempfile.TemporaryDirectory() as folder:
            sys.argv = [example, *options, "--steps", str(steps), "--out", folder]
            sys.argv += ["--eval-images", "200"]
            # The counter does not know every fused attention.
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                runpy.run_path(str(EXAMPLES / example), run_name="__main__")
        counts.append(counter.get_total_flops())
    return (counts[1] - counts[0]) / COUNTED_STEPS


def counted(name: str, common: list[str]) -> float:
    example, options = METHODS[name]
    command = [sys.executable, __file__, "--count", example, "--", *common, *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    if done.returncode:
        raise SystemExit(f"{name}: {done.stdout}{done.stderr}")
    return float(done.stdout.splitlines()[-1])


def train(name: str, steps: int, seed: int, common: list[str], out: Path) -> dict[str, Any]:
    """The `result.json` of a run, made now if it is not there."""
    example, options = METHODS[name]
    folder = out / f"{name}-{seed}"
    given = [*common, *options, "--steps", str(steps), "--seed", str(seed)]
    command = [sys.executable, str(EXAMPLES / example), *given, "--out", str(folder)]
    asked, found = folder / "options.json", folder / "result.json"
    if not (found.exists() and asked.exists() and json.loads(asked.read_text()) == given):
        print(" ", " ".join(["python", f"examples/{example}", *given]), flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("w") as log:
            subprocess.run(command, stdout=log, stderr=log, env=environment(), check=True)
        asked.write_text(json.dumps(given))
    result: dict[str, Any] = json.loads(found.read_text())
    return result | {"trained": TRAINED[example]}


def rows_of(runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Each number as a list, one for each seed; the untrained rows are those of the first method."""
    first = next(iter(runs.values()))
    wanted = [(name, first, name) for name in ("raw pixels", "untrained encoder")]
    wanted += [(name, found, found[0]["trained"]) for name, found in runs.items()]
    rows = []
    for name, results, key in wanted:
        knn, linear, rank = zip(*(result["rows"][key] for result in results), strict=True)
        row: dict[str, Any] = {"name": name, "knn": knn, "linear": linear, "rank": rank}
        trained = name in runs
        row["images"] = results[0]["images"] if trained else None
        row["seconds"] = [result["seconds"] for result in results] if trained else None
        rows.append(row)
    return rows


def percent(values: tuple[float, ...]) -> str:
    return spread(tuple(100 * value for value in values)) + " %"


def spread(values: tuple[float, ...], digits: int = 1) -> str:
    """Mean and standard deviation over seeds."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def environment() -> dict[str, str]:
    return {**os.environ, "JEPAKIT_TYPECHECK": "0", "MPLBACKEND": "agg"}


def commit() -> str:
    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip()

    return git("rev-parse", "HEAD") + (" with changes" if git("status", "--porcelain") else "")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="digits", help="as in the examples")
    parser.add_argument("--steps", type=int, default=1496, help="of I-JEPA; default: 8 epochs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--only", nargs="+", choices=METHODS, default=["ijepa", "cjepa", "lejepa", "info_nce"]
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", default="objectives-out", help="folder; runs in it are kept")
    parser.add_argument("--count", help=argparse.SUPPRESS)
    parser.add_argument("options", nargs="*", help="after --: for every run of both examples")
    return parser.parse_args()


if __name__ == "__main__":
    main()
