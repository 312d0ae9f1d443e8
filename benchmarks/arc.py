"""Sequences of grids: attention or a mean over the steps, with and without a codebook.

    python benchmarks/arc.py --data data/arc_agi1.npz --runs runs/arc \\
        --write benchmarks/results/arc.json

Every row is trained on the same puzzles in the same order. The loss and the rate of right answers
are those on the puzzles of the test part, also with the steps shown in reverse.
"""

from typing import Any

from runs import arguments, run_all, save, spread

ROWS = {
    "attention": ["--codes", "0"],
    "attention, codebook": [],
    "mean": ["--pool", "mean", "--codes", "0"],
    "mean, codebook": ["--pool", "mean"],
}


def main() -> None:
    parser = arguments(__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=30, help="passes over the puzzles")
    args = parser.parse_args()
    common = ["--data", args.data, "--device", "cpu", "--epochs", str(args.epochs)]
    jobs = {
        (name, seed): ("examples/arc_jepa.py", [*common, *options])
        for seed in args.seeds
        for name, options in ROWS.items()
    }
    results = run_all(jobs, args.runs, args.parallel)
    rows = []
    for name, options in ROWS.items():
        runs = [results[name, seed] for seed in args.seeds]
        row: dict[str, Any] = {"name": name, "options": [*common[2:], *options]}
        row |= {key: [run[key] for run in runs] for key in ("steps", "seconds")}
        row |= {key: [run["rows"][key] for run in runs] for key in runs[0]["rows"]}
        curves = [{key: [y for _, y in xs] for key, xs in run["curves"].items()} for run in runs]
        rows.append(row | {"curves": curves})  # a value for each epoch
    save(args, rows, table)


def table(rows: list[dict[str, Any]]) -> str:
    """The last epoch, and in a second table the lowest and highest values of all epochs."""
    first = rows[0]
    lines = [
        "| | loss | reversed: higher by | right of 100 | reversed | codes used | temperature |",
        "|---|---|---|---|---|---|---|",
        f"| copy of the input | | | {_percent(first['copy of the input'], 'retrieval')} | | | |",
        f"| untrained | {_cells(first['untrained'])} |",
        *(f"| {row['name']} | {_cells(row['trained'])} |" for row in rows),
        "",
        "| every epoch | context rank | target rank | codes used | temperature | contrastive term "
        "| relational term |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ranges = [_range(row["curves"], name, 1) for name in ("context rank", "target rank")]
        has_codes = "usage" in row["curves"][0]
        ranges.append(f"{_range(row['curves'], 'usage', 0, 100)} %" if has_codes else "")
        ranges += [
            _range(row["curves"], name, 3) for name in ("temperature", "contrastive", "relational")
        ]
        lines.append(f"| {row['name']} | {' | '.join(ranges)} |")
    return "\n".join(lines)


def _cells(runs: list[dict[str, float]]) -> str:
    # No minus before a zero.
    rise = [round(run["loss, reversed"] - run["loss"], 3) + 0.0 for run in runs]
    cells = [
        spread([run["loss"] for run in runs], digits=3),
        spread(rise, digits=3),
        _percent(runs, "retrieval"),
        _percent(runs, "retrieval, reversed"),
        _percent(runs, "usage") if "usage" in runs[0] else "",
        spread([run["temperature"] for run in runs], digits=3),
    ]
    return " | ".join(cells)


def _percent(runs: list[dict[str, float]], name: str) -> str:
    return spread([100 * run[name] for run in runs], " %")


def _range(curves: list[dict[str, list[float]]], name: str, digits: int, scale: float = 1) -> str:
    """Lowest and highest value of all epochs and seeds."""
    values = [scale * value for run in curves for value in run[name]]
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


if __name__ == "__main__":
    main()
