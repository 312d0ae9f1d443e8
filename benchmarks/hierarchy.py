"""Comparison of I-JEPA and H-JEPA by `examples/hjepa.py` at equal compute.

    python benchmarks/hierarchy.py --data textures --runs runs/hierarchy \
        --write benchmarks/results/hierarchy.json

The example's defaults, with whitened targets on every level. Every row is trained for as many
floating-point operations as the first, as counted. The blocks of masks of two levels are whole on
both, so there are fewer different masks; for comparison I-JEPA is also trained on them. A seed
gives the same initial weights and the same order of images in every row, so differences are paired
by seed.

Level 0 is evaluated by the mean of its features, level 1 by the concatenated features of its cells.
Compare rows within a level only, since the numbers of features differ. For a level that a row does
not train, averages of its features over the same cells are evaluated instead.
"""

import statistics
from typing import Any

from runs import arguments, cells, flops_per_step, interval, run_all, save, unbroken

SCRIPT = "examples/hjepa.py"
BATCH = 64
COMMON = ["--batch-size", str(BATCH), "--compare-levels", "2", "--device", "cpu"]
_TWO = ["--levels", "2"]
VARIANTS = {
    "I-JEPA": ["--levels", "1"],
    "I-JEPA, masks of 2 levels": ["--levels", "1", "--mask-levels", "2"],
    "2 levels": _TWO,
    "2 levels, fine one heavier": [*_TWO, "--weights", "fine"],
    "2 levels, conv pool": [*_TWO, "--pool", "conv"],
    "2 levels, fpn-add": [*_TWO, "--fusion", "fpn-add"],
}


def main() -> None:
    parser = arguments(__doc__.split("\n")[0], images=32_000)
    args = parser.parse_args()
    common = ["--data", args.data, *COMMON]
    flops = {
        name: flops_per_step(SCRIPT, [*common, *options]) for name, options in VARIANTS.items()
    }
    first = next(iter(flops.values()))
    steps = {name: round(args.images / BATCH * first / each) for name, each in flops.items()}
    print({name: (steps[name], f"{flops[name]:.3g}") for name in VARIANTS}, flush=True)
    jobs = {
        (name, seed): (SCRIPT, [*common, *options, "--steps", str(steps[name])])
        for seed in args.seeds
        for name, options in VARIANTS.items()
    }
    results = run_all(jobs, args.runs, args.parallel)
    rows = []
    for name, options in VARIANTS.items():
        runs = [results[name, seed] for seed in args.seeds]
        rows.append(
            {
                "name": name,
                "options": [*COMMON, *options],
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
