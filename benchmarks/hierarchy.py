"""What hierarchy buys: I-JEPA and H-JEPA by `examples/hjepa.py`, at equal compute.

    python benchmarks/hierarchy.py --data fashion_mnist.npz --runs runs/hierarchy \
        --write benchmarks/results/hierarchy.json

Every row is trained for as many floating-point operations as the first, counted. Blocks of a
row's masks are whole on all of its levels, which costs variety: that is why I-JEPA is trained on
the masks of three levels, too. Initial weights and the order of images are those of the seed in
every row, so differences are paired by seed.

Level 0 is judged by the mean of its tokens, a coarser level of the teacher by its cells side by
side, so compare within a level: more numbers hold more. For a level that a row does not train,
averages of its tokens over the same cells stand in: what I-JEPA's tokens hold when they are pooled
afterwards.
"""

import statistics
from typing import Any

from runs import arguments, cells, flops_per_step, interval, run_all, save

SCRIPT = "examples/hjepa.py"
BATCH = 32
# 10 x 10 patches: on 8 x 8 the masks of three levels would be drawn on a grid of 2 x 2.
COMMON = [
    *("--image-size", "40", "--patch-size", "4", "--batch-size", str(BATCH)),
    *("--compare-levels", "3", "--num-targets", "3", "--predictor-depth", "2"),
    *("--momentum", "0.98", "1", "--positions", "sincos"),  # runs are short
    *("--eval-images", "3000", "--device", "cpu"),
]
ROWS = {
    "I-JEPA": ["--levels", "1"],
    "I-JEPA, masks of 3 levels": ["--levels", "1", "--mask-levels", "3"],
    **{
        f"{levels} levels, {fusion}": ["--levels", str(levels), "--fusion", fusion]
        for levels in (2, 3)
        for fusion in ("none", "fpn-add", "fpn-concat")
    },
}


def main() -> None:
    parser = arguments(__doc__.split("\n")[0], images=24_000)
    args = parser.parse_args()
    common = ["--data", args.data, *COMMON]
    flops = {name: flops_per_step(SCRIPT, [*common, *options]) for name, options in ROWS.items()}
    first = next(iter(flops.values()))
    steps = {name: round(args.images / BATCH * first / each) for name, each in flops.items()}
    print({name: (steps[name], f"{flops[name]:.3g}") for name in ROWS}, flush=True)
    jobs = {
        (name, seed): (SCRIPT, [*common, *options, "--steps", str(steps[name])])
        for seed in args.seeds
        for name, options in ROWS.items()
    }
    results = run_all(jobs, args.runs, args.parallel)
    rows = []
    for name in ROWS:
        runs = [results[name, seed] for seed in args.seeds]
        rows.append(
            {
                "name": name,
                "options": [*COMMON, *ROWS[name]],
                "levels": int(ROWS[name][1]),
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
        "| | level | steps | kNN-20 | linear probe | effective rank | untrained, linear "
        "| linear less I-JEPA's |",
        "|---|---|---|---|---|---|---|---|",
        f"| raw pixels | | | {cells([run[0] for run in rows[0]['raw pixels'][:1]])} | | |",
    ]
    for row in rows:
        for level, runs in enumerate(zip(*row["trained"], strict=True)):
            own = str(level) if level < row["levels"] else f"{level}, averages"
            head = [row["name"], own, str(row["steps"])] if level == 0 else ["", own, ""]
            before = statistics.mean(each[level][1] for each in row["untrained"])
            firsts = [each[level][1] for each in rows[0]["trained"]]
            gains = [run[1] - first for run, first in zip(runs, firsts, strict=True)]
            gain = "" if row is rows[0] else interval(gains)
            lines.append(f"| {' | '.join([*head, cells(runs), f'{100 * before:.1f} %', gain])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
