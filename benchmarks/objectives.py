"""Objectives side by side at equal compute: I-JEPA, C-JEPA, LeJEPA, contrastive and others.

    python benchmarks/objectives.py --data digits --runs runs/objectives \
        --write benchmarks/results/objectives.json

Each row is an example with its own defaults but for what stands in `ROWS`. Every row is trained for
as many floating-point operations as the first: those of all products of a step, forward and
backward, the teacher's and the projection head's among them, counted in real steps. Sines and
cosines (SIGReg), sorting and the making of views are not counted; seconds stand beside. Batch
sizes, learning rates and numbers of views are each method's own, so the numbers of images differ.

I-JEPA and C-JEPA see whole images without augmentation. The others are told by their augmentations
what does not matter (crops, contrast, brightness, noise), which I-JEPA has to find by itself.
"""

from typing import Any

from runs import arguments, flops_per_step, run_all, save, spread

ROWS: dict[str, tuple[str, list[str]]] = {
    "I-JEPA": ("ijepa", []),
    "C-JEPA": ("ijepa", ["--vicreg-weight", "0.01"]),
    "LeJEPA": ("lejepa", []),
    "contrastive": ("lejepa", ["--objective", "info_nce"]),
    "VICReg": ("lejepa", ["--objective", "vicreg"]),
    "Barlow Twins": ("lejepa", ["--objective", "barlow"]),
    "agreement, KoLeo": ("lejepa", ["--objective", "koleo"]),
    "agreement alone": ("lejepa", ["--objective", "none"]),
}
BATCH = {"ijepa": 32, "lejepa": 64}
TRAINED = {"ijepa": "trained teacher", "lejepa": "trained encoder"}


def main() -> None:
    parser = arguments(__doc__.split("\n")[0], images=48_000)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), help="rows")
    parser.add_argument("--flip", action="store_true", help="mirror the views of those with views")
    args = parser.parse_args()

    def options_of(name: str) -> tuple[str, list[str]]:
        example, options = ROWS[name]
        flip = ["--flip"] if args.flip and example == "lejepa" else []
        batch = ["--batch-size", str(BATCH[example])]
        return example, ["--data", args.data, "--device", "cpu", *batch, *flip, *options]

    flops = {
        name: flops_per_step(*options_of(name)) for name in {"I-JEPA": 0} | dict.fromkeys(args.only)
    }
    budget = args.images / BATCH["ijepa"] * flops["I-JEPA"]
    steps = {name: round(budget / flops[name]) for name in args.only}
    print({name: (steps[name], f"{flops[name]:.3g}") for name in steps}, flush=True)
    jobs = {}
    for seed in args.seeds:
        for name in args.only:
            example, options = options_of(name)
            jobs[name, seed] = (example, [*options, "--steps", str(steps[name])])
    results = run_all(jobs, args.runs, args.parallel)
    rows = []
    for name in args.only:
        example, options = options_of(name)
        runs = [results[name, seed] for seed in args.seeds]
        row: dict[str, Any] = {"name": name, "example": example, "options": options[2:]}
        row |= {"steps": steps[name], "images": runs[0]["images"], "flops_per_step": flops[name]}
        row |= {"seconds": [run["seconds"] for run in runs]}
        for key in ("raw pixels", "untrained encoder"):
            row[key] = [run["rows"][key] for run in runs]
        row["trained"] = [run["rows"][TRAINED[example]] for run in runs]
        rows.append(row)
    save(args, rows, table)


def table(rows: list[dict[str, Any]]) -> str:
    """Means over the seeds, with their ranges."""
    lines = [
        "| | images | kNN-20 | linear probe | effective rank | seconds |",
        "|---|---|---|---|---|---|",
    ]

    def add(name: str, images: str, runs: list[Any], seconds: str = "") -> None:
        knn, linear, rank = zip(*runs, strict=True)
        cells = [
            spread([100 * value for value in knn], " %"),
            spread([100 * value for value in linear], " %"),
            spread(list(rank)),
        ]
        lines.append(f"| {' | '.join([name, images, *cells, seconds])} |")

    add("raw pixels", "", rows[0]["raw pixels"][:1])
    add("untrained encoder", "", rows[0]["untrained encoder"])
    for row in rows:
        add(row["name"], f"{row['images']:,}", row["trained"], spread(row["seconds"]))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
