"""Ablations of I-JEPA: one setting changed at a time, over several seeds.

    python benchmarks/ablations.py --data fashion_mnist.npz --runs runs/ablations --images 40000 \
        --only sampler --seeds 0 1 2 3 4 --write benchmarks/results/ablation_sampler.json

Every row is trained on as many images as the baseline, in the same order, from the same initial
weights. Differences from the baseline are paired by seed, with a 95 % interval of Student's t.
"""

from typing import Any

from runs import arguments, cells, interval, run_all, save, scores

BATCH = 32
# Three targets, since 8 x 8 patches leave few places for four. Short runs need a teacher that moves
# fast, and fixed position embeddings instead of learned ones.
BASE = [
    *("--image-size", "32", "--patch-size", "4", "--batch-size", str(BATCH)),
    *("--num-targets", "3", "--momentum", "0.98", "1", "--positions", "sincos", "--device", "cpu"),
    *("--eval-images", "3000"),
]
_FOUR = ["--num-targets", "4"]
_LARGER = ["--image-size", "40"]
# The rows of a group are compared with its first row.
GROUPS: dict[str, dict[str, list[str]]] = {
    # On 8 x 8 patches the published sampler would never end: its blocks need more than 10 patches.
    "sampler": {
        "MultiBlockMask, 10 x 10 patches": _LARGER,
        "published sampler": [*_LARGER, "--sampler", "reference"],
    },
    # With three targets the minimum has hardly any effect on so small a grid.
    "least context, 4 targets": {
        "0.25": _FOUR,
        "0.15": [*_FOUR, "--min-context-coverage", "0.15"],
        "0.4": [*_FOUR, "--min-context-coverage", "0.4"],
    },
    "context length": {
        "trim, random": [],
        "trim, nearest": ["--context-subset", "nearest"],
        "fixed, random": ["--context-length", "fixed"],
        "fixed, nearest": ["--context-length", "fixed", "--context-subset", "nearest"],
        "pad": ["--context-length", "pad"],
    },
    "target blocks": {
        "each on its own": [],
        "together": ["--joint"],
    },
    "momentum": {
        "0.98 to 1": [],
        "0.996 to 1": ["--momentum", "0.996", "1"],
        "0.98 throughout": ["--momentum", "0.98", "0.98"],
    },
    "targets": {
        "as they are, MSE": [],
        "layer norm, MSE": ["--target-norm", "layer"],
        "layer norm, smooth L1": ["--recipe", "code"],
    },
    "predictor": {
        "3 blocks of 64": [],
        "1 block": ["--predictor-depth", "1"],
        "6 blocks": ["--predictor-depth", "6"],
        "32 wide": ["--predictor-width", "32"],
        "128 wide": ["--predictor-width", "128"],
    },
}


def main() -> None:
    parser = arguments(__doc__.split("\n")[0], images=20_000)
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
        settings = runs[0]["settings"]
        row["patches_per_side"] = settings["image_size"] // settings["patch_size"]
        rows.append(row | scores(runs))
    save(args, rows, table)


def table(rows: list[dict[str, Any]]) -> str:
    """Means and ranges over the seeds, and paired differences from the group's first row."""
    lines = [
        "| | | kNN-20 | linear probe | effective rank | kNN - first row | linear - first row |",
        "|---|---|---|---|---|---|---|",
    ]
    for side, row in sorted({row["patches_per_side"]: row for row in reversed(rows)}.items()):
        size = f"{side} x {side} patches"
        lines += [
            f"| raw pixels | {size} | {cells(row['raw'][:1])} | | |",
            f"| untrained encoder | {size} | {cells(row['untrained'])} | | |",
        ]
    firsts: dict[str, list[Any]] = {}
    for row in rows:
        base = firsts.setdefault(row["group"], row["trained"])
        pairs = list(zip(row["trained"], base, strict=True))
        gains = [interval([ours[i] - theirs[i] for ours, theirs in pairs]) for i in (0, 1)]
        is_first = base is row["trained"]
        head = [row["group"] if is_first else "", row["name"], cells(row["trained"])]
        lines.append(f"| {' | '.join([*head, *(['', ''] if is_first else gains)])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
