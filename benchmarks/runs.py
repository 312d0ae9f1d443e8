"""Runs of the examples for a table: equal compute, several seeds, results that can be traced."""

import argparse
import contextlib
import functools
import importlib.util
import io
import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import matplotlib.pyplot as plt
import timm
import torch
from scipy.stats import t as student
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import jepakit

ROOT = Path(__file__).resolve().parents[1]
if not Path(jepakit.__file__).is_relative_to(ROOT):
    raise ImportError(f"jepakit is that of {jepakit.__file__}: set PYTHONPATH to {ROOT / 'src'}")
_OVER_SEEDS = "means, and ranges over the seeds"
_COUNTED = 20  # steps over which operations are counted; masks differ in size


def flops_per_step(script: str, options: Sequence[str]) -> float:
    """Floating-point operations of the products in a training step, forward and backward."""
    counts = []
    for steps in (1, 1 + _COUNTED):
        # The counter does not know every fused attention.
        plain = sdpa_kernel(SDPBackend.MATH)
        count = FlopCounterMode(display=False)
        with tempfile.TemporaryDirectory() as out, plain, count as counter:
            shared = ("--steps", str(steps), "--eval-images", "40", "--out", out)
            _main_of(script, [*options, *shared, "--seed", "0"])
        counts.append(counter.get_total_flops())
    return (counts[1] - counts[0]) / _COUNTED


def module_of(script: str) -> ModuleType:
    """A script of this project as a module."""
    path = ROOT / script
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _main_of(script: str, arguments: Sequence[str]) -> None:
    module, quiet = module_of(script), contextlib.redirect_stdout(io.StringIO())
    with mock.patch.object(sys, "argv", [script, *arguments]), quiet:
        module.main()
    plt.close("all")


def run(script: str, options: Sequence[str], out: Path, threads: int) -> dict[str, Any]:
    """What one run wrote into its result.json; what lies there already is not run again."""
    result, asked = out / "result.json", out / "asked.json"
    asking = {"script": script, "options": list(options), "commit": commit_at_start()}
    if result.exists() and json.loads(asked.read_text()) != asking:
        raise ValueError(f"{out}: holds a run of {asked.read_text()}, asked for is {asking}")
    if not result.exists():
        out.mkdir(parents=True, exist_ok=True)
        asked.write_text(json.dumps(asking))
        command = [sys.executable, str(ROOT / script), *options]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MPLBACKEND": "agg"}
        environment["PYTHONPATH"] = str(ROOT / "src")  # what the commit says
        told = out / "log.txt"
        with told.open("w") as log:
            done = subprocess.run(
                [*command, "--out", str(out)], stdout=log, stderr=log, env=environment
            )
        if done.returncode != 0:
            last = "\n".join(told.read_text().splitlines()[-5:])
            raise SystemExit(f"{script} ended with {done.returncode}; {told} ends with\n{last}")
    loaded: dict[str, Any] = json.loads(result.read_text())
    return loaded


def run_all(
    jobs: Mapping[tuple[str, int], tuple[str, Sequence[str]]], out: Path, parallel: int
) -> dict[tuple[str, int], dict[str, Any]]:
    """The results of all jobs `(row, seed) -> (script, options)`, `parallel` at a time."""
    threads = max(1, (os.cpu_count() or 1) // parallel)

    def one(key: tuple[str, int]) -> dict[str, Any]:
        script, options = jobs[key]
        name, seed = key
        result = run(script, [*options, "--seed", str(seed)], out / f"{name}-{seed}", threads)
        print(f"{name}, seed {seed}: {result['seconds']:.0f} s", flush=True)
        return result

    with ThreadPoolExecutor(parallel) as pool:
        return dict(zip(jobs, pool.map(one, jobs), strict=True))


def _code() -> str:
    """The last commit of what runs, with a plus if something else than that runs."""
    git, code = (
        ["git", "-C", str(ROOT)],
        ["src", "examples", "benchmarks/*.py", "benchmarks/*.toml"],
    )
    commit = subprocess.check_output([*git, "log", "-1", "--format=%H", "--", *code], text=True)
    changed = subprocess.check_output([*git, "status", "--porcelain", "--", *code], text=True)
    return commit.strip() + ("+" if changed.strip() else "")


@functools.cache
def commit_at_start() -> str:
    """As it was when the first run began: runs take hours, and files may change meanwhile."""
    return _code()


def scores(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    """Of raw pixels, untrained and trained, for every seed; of several levels the finest."""
    found = {}
    for key, given in zip(("raw", "untrained", "trained"), runs[0]["rows"], strict=True):
        each = [run["rows"][given] for run in runs]
        found[key] = [row[0] if isinstance(row[0], list) else row for row in each]
    return found


def machine(device: str) -> str:
    """What the numbers were measured on."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} CPU cores{_cpu_model()}"


def _cpu_model() -> str:
    """Where the system tells, as Linux does."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f" ({models[0]})" if models else ""


def provenance(dataset: str, seeds: Sequence[int], device: str) -> dict[str, Any]:
    """What a reader needs to repeat the numbers."""
    # Where a file lies on this machine is no one else's business.
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    commit = commit_at_start()
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words]),
        "commit": commit if _code() == commit else f"{commit}, changed while it ran",
        "seeds": list(seeds),
        "versions": {
            "jepakit": jepakit.__version__,
            "torch": torch.__version__,
            "timm": timm.__version__,
            "python": platform.python_version(),
        },
        "machine": machine(device),
        "dataset": Path(dataset).name,
    }


def save(
    args: argparse.Namespace,
    rows: list[dict[str, Any]],
    table: Callable[[list[Any]], str],
    device: str = "cpu",
    values: str = _OVER_SEEDS,
) -> None:
    """Print the table; if asked to, write the rows and, beside them, the table for the docs."""
    record = {**provenance(args.data, args.seeds, device), "values": values, "rows": rows}
    print(table(rows))
    if args.write is None:
        return
    args.write.parent.mkdir(parents=True, exist_ok=True)
    args.write.write_text(json.dumps(record, indent=1) + "\n")
    args.write.with_suffix(".md").write_text(page(record, table))


def page(record: Mapping[str, Any], table: Callable[[list[Any]], str]) -> str:
    """A result file as a part of the docs: its table, and how to get it again."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    seeds = f"seed{'s' * (len(record['seeds']) > 1)} {', '.join(map(str, record['seeds']))}"
    words = " ".join(unbroken(shlex.quote(word)) for word in shlex.split(record["command"]))
    lines = textwrap.wrap(words, 92, break_long_words=False, break_on_hyphens=False)
    command = " \\\n    ".join(lines).replace(unbroken(" "), " ")
    return (
        f"{table(record['rows'])}\n\n{record['dataset']}, {seeds}, {record['machine']}; "
        f"{record.get('values', _OVER_SEEDS)}. Commit {record['commit'][:8]}, {versions}:\n\n"
        f"```sh\n{command}\n```\n"
    )


def spread(values: Sequence[float], unit: str = "") -> str:
    """Mean and range of some seeds."""
    unit = unbroken(unit)
    mean, low, high = (f"{x:.1f}" for x in (statistics.mean(values), min(values), max(values)))
    if len(values) == 1:
        return f"{mean}{unit}"
    # In a narrow column a browser breaks at spaces and after dashes; joined, it does not.
    return f"{mean}{unit} ({low}\N{EN DASH}\N{WORD JOINER}{high})"


def unbroken(text: str) -> str:
    """Stays in one line in a narrow column."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def interval(values: Sequence[float]) -> str:
    """Mean of paired differences in points of percent, and how far it may be off at 95 %."""
    mean = round(100 * statistics.mean(values), 1) + 0.0  # no minus before a zero
    if len(values) == 1:
        return f"{mean:+.1f}"
    error = 100 * statistics.stdev(values) / math.sqrt(len(values))
    error *= student.ppf(0.975, len(values) - 1)
    return unbroken(f"{mean:+.1f} ± {error:.1f}")


def cells(runs: Sequence[Sequence[float]]) -> str:
    """kNN accuracy, accuracy of the linear probe and effective rank of some seeds, for a table."""
    knn, linear, rank = zip(*runs, strict=True)
    percent = [spread([100 * value for value in values], " %") for values in (knn, linear)]
    return " | ".join([*percent, spread(rank)])


def arguments(description: str, *, images: int) -> argparse.ArgumentParser:
    """The options that every table has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", required=True, help="as for the examples")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--images", type=int, default=images, help="that the first row is trained on"
    )
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--write", type=Path, help="result file, .json; its table beside it")
    return parser
