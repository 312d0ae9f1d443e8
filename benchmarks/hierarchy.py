"""What hierarchy buys: I-JEPA and H-JEPA by `examples/hjepa.py`, at equal compute.

    python benchmarks/hierarchy.py --data fashion_mnist.npz --runs runs/hierarchy \
        --write benchmarks/results/hierarchy.json

Every row is trained for as many floating-point operations as the first, counted, on the same masks,
whose blocks are whole on two levels, and judged on every level of its teacher by the mean of the
level's cells. I-JEPA has one level only: pooling its tokens does not change their mean, but for
cells that the border cuts off.
"""

from typing import Any

from runs import arguments, flops_per_step, run_all, save, spread

COMMON = ["--patch-size", "4", "--mask-levels", "2", "--num-targets", "3"]
BATCH = 64
ROWS = {
    "I-JEPA": ["--levels", "1"],
    **{
        f"{levels} levels, {fusion}": ["--levels", str(levels), "--fusion", fusion]
        for levels in (2, 3)
        for fusion in ("none", "fpn-add", "fpn-concat")
    },
}


def main() -> None:
    parser = arguments(__doc__.split("\n")[0], images=30_000)
    args = parser.parse_args()
    common = ["--data", args.data, "--batch-size", str(BATCH), *COMMON]
    flops = {name: flops_per_step("hjepa", [*common, *options]) for name, options in ROWS.items()}
    first = next(iter(flops.values()))
    steps = {name: round(args.images / BATCH * first / each) for name, each in flops.items()}
    print({name: (steps[name], f"{flops[name]:.3g}") for name in ROWS}, flush=True)
    jobs = {
        (name, seed): ("hjepa", [*common, *options, "--steps", str(steps[name])])
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
                "options": ["--batch-size", str(BATCH), *COMMON, *ROWS[name]],
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
    """Means over the seeds, with their ranges."""
    lines = [
        "| | level | steps | kNN-20 | linear probe | effective rank | last loss |",
        "|---|---|---|---|---|---|---|",
    ]

    def add(name: str, level: str, steps: str, runs: list[Any], losses: str = "") -> None:
        knn, linear, rank = zip(*runs, strict=True)
        cells = [
            spread([100 * value for value in knn], " %"),
            spread([100 * value for value in linear], " %"),
            spread(list(rank)),
        ]
        lines.append(f"| {' | '.join([name, level, steps, *cells, losses])} |")

    add("raw pixels", "", "", [run[0] for run in rows[0]["raw pixels"]][:1])
    add("untrained", "0", "", [run[0] for run in rows[0]["untrained"]])
    for row in rows:
        for level in range(len(row["trained"][0])):
            add(
                row["name"] if level == 0 else "",
                str(level),
                str(row["steps"]) if level == 0 else "",
                [run[level] for run in row["trained"]],
                spread([losses[f"level_{level}"] for losses in row["losses"]]),
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
