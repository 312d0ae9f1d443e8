"""Objectives side by side at equal compute: I-JEPA, C-JEPA, LeJEPA, contrastive and others.

    python benchmarks/objectives.py --data digits --runs runs/objectives \
        --write benchmarks/results/objectives.json

Each row is an example with its own defaults and the options in `ROWS`. Every row is trained for as
many floating-point operations as the first. Counted in real steps are those of all products of a
step, forward and backward, of the teacher and the projection head too. Sines and cosines (SIGReg),
sorting and making views are not counted. Batch sizes, learning rates and numbers of views are those
of each method, so the numbers of images differ.

I-JEPA and C-JEPA see whole images without augmentation. The augmentations of the others (crops,
contrast, brightness, noise) make their features invariant to these, which I-JEPA has to learn.
"""

from typing import Any

from runs import arguments, cells, flops_per_step, run_all, save, scores

IJEPA, LEJEPA = "examples/ijepa.py", "examples/lejepa.py"
ROWS: dict[str, tuple[str, list[str]]] = {
    "I-JEPA": (IJEPA, []),
    "C-JEPA": (IJEPA, ["--vicreg-weight", "0.01"]),
    "LeJEPA": (LEJEPA, []),
    "contrastive": (LEJEPA, ["--objective", "info_nce"]),
    "VICReg": (LEJEPA, ["--objective", "vicreg"]),
    "Barlow Twins": (LEJEPA, ["--objective", "barlow"]),
    "agreement, KoLeo": (LEJEPA, ["--objective", "koleo"]),
    "agreement alone": (LEJEPA, ["--objective", "none"]),
}
BATCH = {IJEPA: 32, LEJEPA: 64}


def main() -> None:
    parser = arguments(__doc__.split("\n")[0], images=48_000)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), help="rows")
    parser.add_argument("--flip", action="store_true", help="mirror views at random")
    args = parser.parse_args()

    def options_of(name: str) -> tuple[str, list[str]]:
        script, options = ROWS[name]
        flip = ["--flip"] if args.flip and script == LEJEPA else []
        batch = ["--batch-size", str(BATCH[script])]
        return script, ["--data", args.data, "--device", "cpu", *batch, *flip, *options]

    flops = {
        name: flops_per_step(*options_of(name)) for name in {"I-JEPA": 0} | dict.fromkeys(args.only)
    }
    budget = args.images / BATCH[IJEPA] * flops["I-JEPA"]
    steps = {name: round(budget / flops[name]) for name in args.only}
    print({name: (steps[name], f"{flops[name]:.3g}") for name in steps}, flush=True)
    jobs = {}
    for seed in args.seeds:
        for name in args.only:
            script, options = options_of(name)
            jobs[name, seed] = (script, [*options, "--steps", str(steps[name])])
    results = run_all(jobs, args.runs, args.parallel)
    rows = []
    for name in args.only:
        script, options = options_of(name)
        runs = [results[name, seed] for seed in args.seeds]
        row: dict[str, Any] = {"name": name, "script": script, "options": options[2:]}
        row |= {"steps": steps[name], "images": runs[0]["images"], "flops_per_step": flops[name]}
        row |= {"seconds": [run["seconds"] for run in runs]}
        rows.append(row | scores(runs))
    save(args, rows, table)


def table(rows: list[dict[str, Any]]) -> str:
    """Means over the seeds, with their ranges."""
    lines = [
        "| | images | kNN-20 | linear probe | effective rank |",
        "|---|---|---|---|---|",
        f"| raw pixels | | {cells(rows[0]['raw'][:1])} |",
        f"| untrained encoder | | {cells(rows[0]['untrained'])} |",
    ]
    for row in rows:
        lines.append(f"| {row['name']} | {row['images']:,} | {cells(row['trained'])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
