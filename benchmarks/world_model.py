"""The world model of `examples/world_model.py`, over several seeds.

    python benchmarks/world_model.py --runs runs/world-model \
        --write benchmarks/results/world-model.json

Data, initial weights, batches and planning tasks depend on the seed.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from runs import run_all, save, spread

DATASET = "two rooms, drawn in code"
KEPT = ("rows", "rollout", "planning", "seconds", "steps")


def main() -> None:
    args = parse_args()
    options = ["--device", "cpu", *(["--steps", str(args.steps)] if args.steps else [])]
    jobs = {("world-model", seed): ("examples/world_model.py", options) for seed in args.seeds}
    runs = run_all(jobs, args.runs, args.parallel).values()
    save(args, [{key: run[key] for key in KEPT} for run in runs], table)


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Tables of features, rollouts and planning: means over the seeds, and ranges."""

    def rows(part: str, cells: Callable[[list[Any]], list[str]]) -> list[str]:
        """A row for each name of a part of the results, whose cells are made of all seeds."""
        return [
            f"| {' | '.join([name, *cells([run[part][name] for run in runs])])} |"
            for name in runs[0][part]
        ]

    def features(values: list[dict[str, float]]) -> list[str]:
        digits = {"position": 3, "actions": 3, "straightness": 2, "rank": 1}
        return [spread([each[key] for each in values], digits=n) for key, n in digits.items()]

    def errors(values: list[list[float]]) -> list[str]:
        return [spread(steps, digits=3) for steps in zip(*values, strict=True)]

    def shares(values: list[dict[str, float]]) -> list[str]:
        return [spread([100 * each[key] for each in values], " %") for key in values[0]]

    horizon = len(runs[0]["rollout"]["model"])
    steps = " | ".join(map(str, range(1, horizon + 1)))
    return "\n".join(
        [
            "| | position $R^2$ | actions $R^2$ | straightness | effective rank |",
            "|---|---|---|---|---|",
            *rows("rows", features),
            "",
            f"| rollout error at step | {steps} |",
            f"|---|{'---|' * horizon}",
            *rows("rollout", errors),
            "",
            "| goals reached | all | same room | other room |",
            "|---|---|---|---|",
            *rows("planning", shares),
        ]
    )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="training steps, instead of the example's")
    parser.add_argument("--parallel", type=int, default=1, help="number of runs at a time")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument(
        "--write", type=Path, help="result file, .json; the table is written beside it"
    )
    parser.set_defaults(data=DATASET)
    return parser.parse_args()


if __name__ == "__main__":
    main()
