"""What hierarchy buys: I-JEPA and H-JEPA by `examples/hjepa.py`, at equal compute.

    python benchmarks/hierarchy.py --data fashion_mnist.npz --runs runs/hierarchy \
        --write benchmarks/results/hierarchy.json

Every row is trained for as many floating-point operations as the first, counted, on the same masks,
whose blocks are whole on three levels, so that no cell of any level holds a part of what it sees.
Level 0 is judged by the mean of its tokens, a coarser level of the teacher by its cells side by
side. For a level that a row does not train, averages of its tokens over the same cells stand in:
what I-JEPA's tokens hold when they are pooled afterwards.
"""

from typing import Any

from runs import arguments, cells, flops_per_step, run_all, save, spread

SCRIPT = "examples/hjepa.py"
BATCH = 32
COMMON = [
    *("--image-size", "32", "--patch-size", "4", "--batch-size", str(BATCH)),
    *("--compare-levels", "3", "--num-targets", "3"),
    *("--momentum", "0.98", "1"),  # runs are short
]
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
    """Means over the seeds, with their ranges."""
    lines = [
        "| | level | steps | kNN-20 | linear probe | effective rank | last loss |",
        "|---|---|---|---|---|---|---|",
        f"| raw pixels | | | {cells([run[0] for run in rows[0]['raw pixels'][:1]])} | |",
    ]

    def add(name: str, steps: str, row: dict[str, Any], key: str) -> None:
        for level, runs in enumerate(zip(*row[key], strict=True)):
            own, last = level < row["levels"], ""
            if own and key == "trained":
                last = spread([each[f"level_{level}"] for each in row["losses"]], digits=3)
            head = [name, str(level) if own else f"{level}, averages", steps]
            lines.append(f"| {' | '.join(head)} | {cells(runs)} | {last} |")
            name = steps = ""

    add("untrained", "", rows[0], "untrained")
    for row in rows:
        add(row["name"], str(row["steps"]), row, "trained")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
