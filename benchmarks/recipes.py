"""Run a recipe, a file of `benchmarks/recipes/`, and write its result file.

    python benchmarks/recipes.py cifar10-ijepa --data-folder data
    python benchmarks/recipes.py fashion-lejepa --seeds 0 1 2 --parallel 2

A recipe holds a script, its options and a dataset file; with `pictures = true` those of its first
seed are kept. Its numbers are written to
`benchmarks/results/<recipe>.json`; the tables of the docs are generated from all result files.
"""

import argparse
import json
import statistics
import tomllib
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from runs import ROOT, cells_with_std, run_all, save, scores, spread

RECIPES = ROOT / "benchmarks" / "recipes"
RESULTS = ROOT / "benchmarks" / "results"
OVERVIEW = RESULTS / "recipes.md"
_CURVE_POINTS = 60  # points of a curve in a result file


def load(name: str) -> dict[str, Any]:
    """Load a recipe by its name."""
    path = RECIPES / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in RECIPES.glob("*.toml")))
        raise SystemExit(f"no recipe {name!r}; must be one of {known}")
    return tomllib.loads(path.read_text())


def words(options: dict[str, Any]) -> list[str]:
    """Options of a recipe as words of a command line."""
    line: list[str] = []
    for name, value in options.items():
        if value is False:
            raise ValueError(f"{name} = false: leave it out")
        values = value if isinstance(value, list) else [] if value is True else [value]
        line += [f"--{name}", *map(str, values)]
    return line


def tiny(script: str, options: dict[str, Any]) -> dict[str, Any]:
    """The same options for a small model and few steps, on the CPU if there is no GPU."""
    small = {"steps": 4, "batch-size": 8, "width": 32, "depth": 1, "heads": 2}
    small["eval-clips" if script == "examples/vjepa.py" else "eval-images"] = 60
    if "image-size" in options:
        small["image-size"] = 8 * options["patch-size"]
    if options.get("device") == "cuda" and not torch.cuda.is_available():
        small["device"] = "cpu"
        options = {name: value for name, value in options.items() if name != "compile"}
    return options | small


def main() -> None:
    args = parse_args()
    recipe = load(args.recipe)
    if args.data is None:
        a_file = recipe["data"].endswith(".npz")
        args.data = str(args.data_folder / recipe["data"]) if a_file else recipe["data"]
    name = args.recipe
    if args.smoke:
        name += "-smoke"  # a folder of its own, which a real run does not reuse
        recipe["options"] = tiny(recipe["script"], recipe["options"])
    options = ["--data", args.data, *words(recipe["options"])]
    jobs = {(name, seed): (recipe["script"], options) for seed in args.seeds}
    results = run_all(jobs, args.runs, args.parallel)
    runs = [results[key] for key in jobs]
    rows = [row(args.recipe, recipe, runs) | {"data": Path(args.data).name}]
    save(args, rows, table, runs[0]["settings"]["device"])
    if args.write is not None:
        if recipe.get("pictures"):
            keep_pictures(args.runs / f"{name}-{args.seeds[0]}", args.write)
        OVERVIEW.write_text(overview())


def keep_pictures(run: Path, result: Path) -> None:
    """Keep pictures of the first seed beside the result file, at a size for a page."""
    for picture in ("pca", "neighbours"):
        if (path := run / f"{picture}.png").exists():
            image = Image.open(path).convert("RGB")
            image.thumbnail((1000, 1000))
            image.save(result.with_name(f"{result.stem}-{picture}.jpg"), quality=85)


def row(name: str, recipe: dict[str, Any], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of a recipe on the results page."""
    settings, steps = runs[0]["settings"], runs[0]["steps"]
    return {
        "name": name,
        "title": recipe["title"],
        "options": words(recipe["options"]),
        "architecture": architecture(settings, runs[0]["image_shape"]),
        "image_size": runs[0]["image_shape"][-1],
        "steps": steps,
        "images": runs[0]["images"],
        "epochs": runs[0]["images"] / runs[0]["train_images"],
        "seconds": [each["seconds"] for each in runs],
        **scores(runs),
        "head": [each["head"] for each in runs if "head" in each],
        "retrieval": [each["retrieval"] for each in runs if "retrieval" in each],
        "curves": [thinned(each["curves"]) for each in runs],
    }


def architecture(settings: dict[str, Any], image_shape: list[int]) -> str:
    """Width, patch size, depth and heads of the encoder, and the size of the images."""
    frames = f"{image_shape[1]} frames of " if len(image_shape) == 4 else ""
    return (
        f"ViT {settings['width']}/{settings['patch_size']}, {settings['depth']} blocks, "
        f"{settings['heads']} heads, {frames}{image_shape[-1]} px"
    )


def thinned(curves: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Shorten each curve to at most `_CURVE_POINTS` points, means over equal intervals."""
    shortened = {}
    for name, points in curves.items():
        width = -(-len(points) // _CURVE_POINTS)
        parts = [points[start : start + width] for start in range(0, len(points), width)]
        shortened[name] = [
            [part[-1][0], float(f"{statistics.mean(value for _, value in part):.4g}")]
            for part in parts
        ]
    return shortened


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of raw pixels and untrained encoders, and one for each recipe."""
    clips = "frame" in rows[0]  # their probe is an attentive one
    lines = [
        f"| | encoder | epochs | seeds | kNN-20 | {'attentive' if clips else 'linear'} probe "
        "| effective rank | feature std | minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    if clips:
        lines.append(f"| pixels of one frame | | | | {cells_with_std(rows[0]['frame'][:1])} | |")
    lines.append(f"| raw pixels | | | | {cells_with_std(rows[0]['raw'][:1])} | |")
    starts = {}
    for each in rows:
        sincos = ", positions as sines and cosines" if "sincos" in each["options"] else ""
        starts.setdefault((f"untrained{sincos}", each["architecture"]), each["untrained"])
    lines += [
        f"| {name} | {encoder} | 0 | {len(runs)} | {cells_with_std(runs)} | |"
        for (name, encoder), runs in starts.items()
    ]
    for each in rows:
        minutes = spread([seconds / 60 for seconds in each["seconds"]])
        about = f"{each['title']} | {each['architecture']} | {each['epochs']:.1f}"
        runs = each["trained"]
        lines.append(f"| {about} | {len(runs)} | {cells_with_std(runs)} | {minutes} |")
        if each["head"]:
            head = spread([100 * accuracy for accuracy in each["head"]], " %")
            lines.append(f"| its classification head | | | | | {head} | | | |")
    return "\n".join(lines)


def overview() -> str:
    """All recipes, one table for each dataset and tier; recipes without a result are listed."""
    recipes = {path.stem: load(path.stem) for path in sorted(RECIPES.glob("*.toml"))}
    places = {(recipe["tier"], recipe["data"]): None for recipe in recipes.values()}
    sections = []
    for tier, data in sorted(places, key=lambda place: (place[0] != "cpu", place[1])):
        rows, notes = [], []
        for name, recipe in recipes.items():
            if (recipe["tier"], recipe["data"]) != (tier, data):
                continue
            path = RESULTS / f"{name}.json"
            if not path.is_file():
                notes.append(f"- {recipe['title']}, not run: `python benchmarks/recipes.py {name}`")
                continue
            record = json.loads(path.read_text())
            rows += record["rows"]
            seeds = ", ".join(map(str, record["seeds"]))
            notes.append(
                f"- {recipe['title']}: `{record['command']}`, seeds {seeds}, "
                f"{record['machine']}, commit {record['commit'][:8]}, "
                f"torch {record['versions']['torch']}"
            )
        where = "CPU" if tier == "cpu" else "accelerator"
        parts = [f"### {data}, {where}", *([table(rows)] if rows else []), "\n".join(notes)]
        sections.append("\n\n".join(parts))
    return "\n\n".join(sections) + "\n"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help="name of a file of benchmarks/recipes/, without .toml")
    parser.add_argument(
        "--data-folder", type=Path, default=Path("data"), help="folder of the datasets"
    )
    parser.add_argument("--data", help="dataset instead of the recipe's, as in the examples")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="seeds, with one run each"
    )
    parser.add_argument("--parallel", type=int, default=1, help="number of runs at a time")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/recipes"), help="folder for the runs"
    )
    parser.add_argument("--write", type=Path, help="result file, .json")
    parser.add_argument(
        "--smoke", action="store_true", help="run a few steps of a tiny model, as a test"
    )
    args = parser.parse_args()
    if args.smoke and args.write:
        parser.error("--smoke: writes no result")
    if args.data and not (args.write or args.smoke):
        parser.error("--data: needs --write, since the result is not that of the recipe's file")
    if args.write is None and not args.smoke:
        args.write = RESULTS / f"{args.recipe}.json"
    return args


if __name__ == "__main__":
    main()
