"""Runs of the examples with several seeds, and result files and tables that can be traced."""

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
    raise ImportError(f"jepakit is imported from {jepakit.__file__}: set PYTHONPATH={ROOT / 'src'}")
_OVER_SEEDS = "means, and ranges over the seeds"
_COUNTED_STEPS = 20  # operations are averaged over these, since masks differ in size


def flops_per_step(script: str, options: Sequence[str]) -> float:
    """Floating-point operations of all matrix products in a training step, forward and backward."""
    counts = []
    for steps in (1, 1 + _COUNTED_STEPS):
        # The counter does not support every fused attention.
        unfused = sdpa_kernel(SDPBackend.MATH)
        count = FlopCounterMode(display=False)
        with tempfile.TemporaryDirectory() as out, unfused, count as counter:
            shared = ("--steps", str(steps), "--eval-images", "40", "--out", out)
            _run_main(script, [*options, *shared, "--seed", "0"])
        counts.append(counter.get_total_flops())
    return (counts[1] - counts[0]) / _COUNTED_STEPS


def module_of(script: str) -> ModuleType:
    """Import a script of this project by its path."""
    path = ROOT / script
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run_main(script: str, arguments: Sequence[str]) -> None:
    module, quiet = module_of(script), contextlib.redirect_stdout(io.StringIO())
    with mock.patch.object(sys, "argv", [script, *arguments]), quiet:
        module.main()
    plt.close("all")


def run(script: str, options: Sequence[str], out: Path, threads: int) -> dict[str, Any]:
    """The result.json of one run; a finished run in `out` is not repeated."""
    result, request_file = out / "result.json", out / "request.json"
    request = {"script": script, "options": list(options), "commit": commit_at_start()}
    if result.exists() and json.loads(request_file.read_text()) != request:
        raise ValueError(
            f"{out}: holds a run of {request_file.read_text()}, requested is {request}"
        )
    if not result.exists():
        out.mkdir(parents=True, exist_ok=True)
        request_file.write_text(json.dumps(request))
        command = [sys.executable, str(ROOT / script), *options]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MPLBACKEND": "agg"}
        environment["PYTHONPATH"] = str(ROOT / "src")  # the code of the commit above
        log_file = out / "log.txt"
        with log_file.open("w") as log:
            done = subprocess.run(
                [*command, "--out", str(out)], stdout=log, stderr=log, env=environment
            )
        if done.returncode != 0:
            last = "\n".join(log_file.read_text().splitlines()[-5:])
            raise SystemExit(f"{script} ended with {done.returncode}; {log_file} ends with\n{last}")
    loaded: dict[str, Any] = json.loads(result.read_text())
    return loaded


def run_all(
    jobs: Mapping[tuple[str, int], tuple[str, Sequence[str]]], out: Path, parallel: int
) -> dict[tuple[str, int], dict[str, Any]]:
    """Results of all jobs `(row, seed) -> (script, options)`, run `parallel` at a time."""
    threads = max(1, (os.cpu_count() or 1) // parallel)

    def run_job(key: tuple[str, int]) -> dict[str, Any]:
        script, options = jobs[key]
        name, seed = key
        result = run(script, [*options, "--seed", str(seed)], out / f"{name}-{seed}", threads)
        print(f"{name}, seed {seed}: {result['seconds']:.0f} s", flush=True)
        return result

    with ThreadPoolExecutor(parallel) as pool:
        return dict(zip(jobs, pool.map(run_job, jobs), strict=True))


def _code_commit() -> str:
    """The last commit that changed the code, with a plus if there are uncommitted changes."""
    git = ["git", "-C", str(ROOT)]
    code = ["src", "examples", "benchmarks/*.py", "benchmarks/*.toml"]
    commit = subprocess.check_output([*git, "log", "-1", "--format=%H", "--", *code], text=True)
    changed = subprocess.check_output([*git, "status", "--porcelain", "--", *code], text=True)
    return commit.strip() + ("+" if changed.strip() else "")


@functools.cache
def commit_at_start() -> str:
    """The commit when the first run began; runs take hours, and files may change meanwhile."""
    return _code_commit()


def scores(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    """Scores of raw pixels, untrained and trained encoder for every seed, of the finest level.

    Of clips the first row is one frame.
    """
    keys, names = ["raw", "untrained", "trained"], list(runs[0]["rows"])
    if names[0] == "one frame":
        keys = ["frame", *keys]
    scores_of = {}
    for key, name in zip(keys, names, strict=True):
        rows = [run["rows"][name] for run in runs]
        rows = [list(row.values()) if isinstance(row, dict) else row for row in rows]
        scores_of[key] = [row[0] if isinstance(row[0], list) else row for row in rows]
    return scores_of


def machine(device: str) -> str:
    """Name of the machine that measures the numbers."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} CPU cores{_cpu_model()}"


def _cpu_model() -> str:
    """The model in brackets on Linux, else an empty string."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f" ({models[0]})" if models else ""


def provenance(dataset: str, seeds: Sequence[int], device: str) -> dict[str, Any]:
    """Everything that a reader needs to repeat the numbers."""
    # Without the folders of this machine.
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    commit = commit_at_start()
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words]),
        "commit": commit if _code_commit() == commit else f"{commit}, changed while it ran",
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
    """Print the table; with `--write` save the rows, and beside them the table for the docs."""
    record = {**provenance(args.data, args.seeds, device), "values": values, "rows": rows}
    print(table(rows))
    if args.write is None:
        return
    args.write.parent.mkdir(parents=True, exist_ok=True)
    args.write.write_text(json.dumps(record, indent=1) + "\n")
    args.write.with_suffix(".md").write_text(page(record, table))


def page(record: Mapping[str, Any], table: Callable[[list[Any]], str]) -> str:
    """A result file as a part of the docs: its table, and the command that repeats it."""
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


def spread(values: Sequence[float], unit: str = "", digits: int = 1) -> str:
    """Mean over the seeds, and the range in brackets."""
    unit = unbroken(unit)
    numbers = statistics.mean(values), min(values), max(values)
    mean, low, high = (f"{number:.{digits}f}" for number in numbers)
    if len(values) == 1:
        return f"{mean}{unit}"
    # The word joiner keeps a browser from breaking the line after the dash.
    return f"{mean}{unit} ({low}\N{EN DASH}\N{WORD JOINER}{high})"


def unbroken(text: str) -> str:
    """Replace spaces, so that the text stays in one line in a narrow column."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def interval(values: Sequence[float]) -> str:
    """Mean of paired differences in percentage points with its 95 % interval."""
    mean = round(100 * statistics.mean(values), 1) + 0.0  # no minus before a zero
    if len(values) == 1:
        return f"{mean:+.1f}"
    error = 100 * statistics.stdev(values) / math.sqrt(len(values))
    error *= student.ppf(0.975, len(values) - 1)
    return unbroken(f"{mean:+.1f} ± {error:.1f}")


def cells(runs: Sequence[Sequence[float]]) -> str:
    """Table cells of some seeds: kNN accuracy, linear-probe accuracy, effective rank."""
    knn, linear, rank, *_ = zip(*runs, strict=True)
    percent = [spread([100 * value for value in values], " %") for values in (knn, linear)]
    return " | ".join([*percent, spread(rank)])


def cells_with_std(runs: Sequence[Sequence[float]]) -> str:
    """Cells of all scores; results of before the std was measured have none."""
    stds = [run[3] for run in runs if len(run) > 3]
    return f"{cells(runs)} | {spread(stds, digits=2) if stds else ''}"


def arguments(description: str, *, images: int | None = None) -> argparse.ArgumentParser:
    """A parser with the options that all tables share; `--images` only with a default."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", required=True, help="dataset, as in the examples")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    if images is not None:
        parser.add_argument(
            "--images", type=int, default=images, help="number of training images of the first row"
        )
    parser.add_argument("--parallel", type=int, default=2, help="number of runs at a time")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument(
        "--write", type=Path, help="result file, .json; the table is written beside it"
    )
    return parser
