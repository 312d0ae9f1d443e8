"""Comparison of I-JEPA and H-JEPA by `examples/hjepa.py` at equal compute.

    python benchmarks/hierarchy.py --data fashion_mnist.npz --runs runs/hierarchy \
        --write benchmarks/results/hierarchy.json
    python benchmarks/hierarchy.py --group two-levels --data fashion_mnist.npz \
        --runs runs/two_levels --write benchmarks/results/hierarchy_two_levels.json
    python benchmarks/hierarchy.py --group two-levels --only I-JEPA \
        "I-JEPA, masks of 2 levels" "2 levels, conv pool, fine one heavier" \
        --images 96000 --data fashion_mnist.npz --runs runs/longer \
        --write benchmarks/results/hierarchy_longer.json

The first group varies the number of levels and the fusion. The second varies other settings of two
levels: the weights of the losses, normalised targets (so that no level dominates the loss), the
pooling, and one predictor for both levels.

Every row is trained for as many floating-point operations as the first, as counted; a row of "equal
steps" for as many steps. The blocks of a row's masks are whole on all of its levels, so there are
fewer different masks; for comparison I-JEPA is also trained on masks of several levels. A seed
gives the same initial weights and the same order of images in every row, so differences are paired
by seed.

Level 0 is evaluated by the mean of its features, a coarser level by the concatenated features of
its cells. Compare rows within a level only, since the numbers of features differ. For a level that
a row does not train, averages of its features over the same cells are evaluated instead.
"""

import statistics
from typing import Any

from runs import arguments, cells, flops_per_step, interval, run_all, save, unbroken

SCRIPT = "examples/hjepa.py"
BATCH = 32
# 10 x 10 patches: on 8 x 8 the masks of three levels would be drawn on a grid of 2 x 2.
COMMON = [
    *("--image-size", "40", "--patch-size", "4", "--batch-size", str(BATCH)),
    *("--num-targets", "3", "--predictor-depth", "2"),
    *("--momentum", "0.98", "1", "--positions", "sincos"),  # since runs are short
    *("--eval-images", "3000", "--device", "cpu"),
]
_TWO = ["--levels", "2"]
_LAYER = ["--target-norm", "layer"]
GROUPS: dict[str, dict[str, list[str]]] = {
    "levels": {
        "I-JEPA": ["--levels", "1"],
        "I-JEPA, masks of 3 levels": ["--levels", "1", "--mask-levels", "3"],
        **{
            f"{levels} levels, {fusion}": ["--levels", str(levels), "--fusion", fusion]
            for levels in (2, 3)
            for fusion in ("none", "fpn-add", "fpn-concat")
        },
    },
    "two-levels": {
        "I-JEPA": ["--levels", "1"],
        "I-JEPA, masks of 2 levels": ["--levels", "1", "--mask-levels", "2"],
        "2 levels": _TWO,
        "2 levels, equal steps": _TWO,
        "2 levels, fine one heavier": [*_TWO, "--weights", "fine"],
        "2 levels, layer norm": [*_TWO, *_LAYER],
        "2 levels, fpn-add, layer norm": [*_TWO, "--fusion", "fpn-add", *_LAYER],
        **{
            f"2 levels, {pool} pool": [*_TWO, "--pool", pool]
            for pool in ("max", "conv", "attention")
        },
        "2 levels, conv pool, fine one heavier": [*_TWO, "--pool", "conv", "--weights", "fine"],
        "2 levels, shared predictor": [*_TWO, "--shared-predictor"],
    },
}
COMPARED = {"levels": "3", "two-levels": "2"}


def main() -> None:
    parser = arguments(__doc__.split("\n")[0], images=24_000)
    parser.add_argument("--group", choices=GROUPS, default="levels", help="group of rows")
    parser.add_argument("--only", nargs="+", help="rows of the group")
    args = parser.parse_args()
    variants = GROUPS[args.group]
    for name in args.only or ():
        if name not in variants:
            parser.error(f"--only {name!r}: {args.group} has {', '.join(map(repr, variants))}")
    variants = {name: variants[name] for name in args.only or variants}
    same = [*COMMON, "--compare-levels", COMPARED[args.group]]
    common = ["--data", args.data, *same]
    flops = {
        name: flops_per_step(SCRIPT, [*common, *options]) for name, options in variants.items()
    }
    first = next(iter(flops.values()))
    steps = {
        name: round(args.images / BATCH * (1 if "equal steps" in name else first / each))
        for name, each in flops.items()
    }
    print({name: (steps[name], f"{flops[name]:.3g}") for name in variants}, flush=True)
    jobs = {
        (name, seed): (SCRIPT, [*common, *options, "--steps", str(steps[name])])
        for seed in args.seeds
        for name, options in variants.items()
    }
    results = run_all(jobs, args.runs, args.parallel)
    rows = []
    for name, options in variants.items():
        runs = [results[name, seed] for seed in args.seeds]
        rows.append(
            {
                "name": name,
                "options": [*same, *options],
                "levels": int(options[1]),
                "steps": steps[name],
                "flops_per_step": flops[name],
                "seconds": [run["seconds"] for run in runs],
                "losses": [run["losses"] for run in runs],
                **{
                    key: [run["rows"][key] for run in runs]
                    for key in ("raw pixels", "untrained", "trained")
                },
            }
        )
    save(args, rows, table)


def table(rows: list[dict[str, Any]]) -> str:
    """Means and ranges over the seeds; paired differences from the first row's linear probe."""
    lines = [
        "| | level | steps | kNN-20 | linear probe | effective rank | untrained: kNN / linear "
        "| linear probe minus I-JEPA's |",
        "|---|---|---|---|---|---|---|---|",
        f"| raw pixels | | | {cells([run[0] for run in rows[0]['raw pixels'][:1]])} | | |",
    ]
    for row in rows:
        for level, runs in enumerate(zip(*row["trained"], strict=True)):
            own = str(level) if level < row["levels"] else f"{level}, averages"
            head = [row["name"], own, str(row["steps"])] if level == 0 else ["", own, ""]
            knn, linear = (
                statistics.mean(each[level][kind] for each in row["untrained"]) for kind in (0, 1)
            )
            before = unbroken(f"{100 * knn:.1f} / {100 * linear:.1f} %")
            firsts = [each[level][1] for each in rows[0]["trained"]]
            gains = [run[1] - first for run, first in zip(runs, firsts, strict=True)]
            gain = "" if row is rows[0] else interval(gains)
            lines.append(f"| {' | '.join([*head, cells(runs), before, gain])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
