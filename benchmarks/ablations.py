"""Ablations of I-JEPA: one setting changed at a time, over several seeds.

    python benchmarks/ablations.py --data textures --runs runs/ablations --only targets context \
        --seeds 0 1 2 3 4 --write benchmarks/results/ablations.json

Every row is trained on as many images as the baseline, in the same order, from the same initial
weights. Differences from the baseline are paired by seed, with a 95 % interval of Student's t.
"""

import statistics
from typing import Any

from runs import arguments, cells_with_std, interval, run_all, save, scores, unbroken

BATCH = 64
BASE = ["--device", "cpu", "--batch-size", str(BATCH), "--eval-images", "2000"]
# 12 x 12 patches: on 8 x 8 the published sampler would never end, its blocks are too large.
_FINER = ["--patch-size", "4", "--num-targets", "4", "--target-scale", "0.15", "0.2"]
# The rows of a group are compared with its first row.
GROUPS: dict[str, dict[str, list[str]]] = {
    "targets": {
        "centred and whitened, MSE": [],
        "centred, std 1 per channel, MSE": ["--target-norm", "centre"],
        "layer norm, MSE": ["--target-norm", "layer"],
        "layer norm, smooth L1 (published code)": ["--recipe", "code"],
        "as they are, MSE (paper)": ["--recipe", "paper"],
    },
    "context": {
        "fixed length, nearest to a patch": [],
        "fixed length, random": ["--context-subset", "random"],
        "trimmed to the shortest, random": [
            *("--context-length", "trim", "--context-subset", "random"),
        ],
        "padded": ["--context-length", "pad"],
    },
    "initial weights": {
        "Xavier": [],
        "std 0.02": ["--init", "normal"],
    },
    "images": {
        "each standardised": [],
        "by the statistics of the data": ["--standardise", "dataset"],
    },
    "momentum": {
        "0.98 to 1": [],
        "0.95 to 1": ["--momentum", "0.95", "1"],
        "0.996 to 1": ["--momentum", "0.996", "1"],
    },
    "target blocks": {
        "3, jointly": [],
        "3, each on its own": ["--separate"],
        "1": ["--num-targets", "1"],
        "2": ["--num-targets", "2"],
    },
    "sampler, 12 x 12 patches": {
        "MultiBlockMask": _FINER,
        "published sampler": [*_FINER, "--sampler", "reference"],
    },
    "predictor": {
        "2 blocks of 64": [],
        "1 block": ["--predictor-depth", "1"],
        "4 blocks": ["--predictor-depth", "4"],
        "32 wide": ["--predictor-width", "32"],
    },
}


def main() -> None:
    parser = arguments(__doc__.split("\n")[0], images=64_000)
    parser.add_argument(
        "--only", nargs="+", choices=GROUPS, default=list(GROUPS), help="groups of rows"
    )
    args = parser.parse_args()
    common = ["--data", args.data, *BASE, "--steps", str(args.images // BATCH)]
    variants = {
        (group, name): options for group in args.only for name, options in GROUPS[group].items()
    }
    # Rows with the same options, such as the baselines of several groups, share a run.
    jobs = {
        (" ".join(options).replace("--", "") or "baseline", seed): [*common, *options]
        for seed in args.seeds
        for options in variants.values()
    }
    scripts = {key: ("examples/ijepa.py", options) for key, options in jobs.items()}
    results = run_all(scripts, args.runs, args.parallel)
    rows = []
    for (group, name), options in variants.items():
        key = " ".join(options).replace("--", "") or "baseline"
        runs = [results[key, seed] for seed in args.seeds]
        row: dict[str, Any] = {"group": group, "name": name, "options": [*BASE, *options]}
        row |= {"steps": args.images // BATCH, "seconds": [run["seconds"] for run in runs]}
        rows.append(row | scores(runs))
    save(args, rows, table)


def table(rows: list[dict[str, Any]]) -> str:
    """Means and ranges over the seeds, and paired differences from the group's first row."""
    lines = [
        "| | | untrained: kNN / linear | kNN-20 | linear probe | effective rank | feature std "
        "| kNN - first row | linear - first row |",
        "|---|---|---|---|---|---|---|---|---|",
        f"| raw pixels | | | {cells_with_std(rows[0]['raw'][:1])} | | |",
    ]
    firsts: dict[str, list[Any]] = {}
    for row in rows:
        base = firsts.setdefault(row["group"], row["trained"])
        pairs = list(zip(row["trained"], base, strict=True))
        gains = [interval([ours[i] - theirs[i] for ours, theirs in pairs]) for i in (0, 1)]
        is_first = base is row["trained"]
        before = " / ".join(
            f"{100 * statistics.mean(run[kind] for run in row['untrained']):.1f}" for kind in (0, 1)
        )
        head = [row["group"] if is_first else "", row["name"], unbroken(f"{before} %")]
        head.append(cells_with_std(row["trained"]))
        lines.append(f"| {' | '.join([*head, *(['', ''] if is_first else gains)])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
