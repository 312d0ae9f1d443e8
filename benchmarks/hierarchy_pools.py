"""Evaluation of coarse levels of finished `hierarchy.py` runs, and of pooled features.

    python benchmarks/hierarchy_pools.py --data fashion_mnist.npz --runs runs/longer --rows I-JEPA \
        "I-JEPA, masks of 2 levels" "2 levels, conv pool, fine one heavier" \
        --write benchmarks/results/hierarchy_pools.json

A trained coarse level is compared with averages and with maxima over the windows of its cells. Both
are computed from the features of level 0 of every row, and of the encoder before training, and are
evaluated like the level itself, by the concatenated features of the cells. The teachers are those
in the folders of the runs; nothing is trained.
"""

import argparse
import json
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
from runs import cells, interval, module_of, save
from torch import Tensor

import jepakit
from jepakit.data import PixelStatistics, load_images
from jepakit.evaluation import evaluate

Encode = Callable[[Tensor], Tensor]
UNTRAINED = "untrained encoder"
# Level 0 is evaluated by the mean of its features, level 1 by those of all cells.
MEAN, AVERAGES, MAXIMA, OWN = "level 0", "level 1, averages", "level 1, maxima", "level 1, trained"


def main() -> None:
    args = parse_args()
    names = [UNTRAINED, *args.rows]
    jobs = [(name, seed) for seed in args.seeds for name in names]
    folders = [
        args.runs / f"{args.rows[0] if name == UNTRAINED else name}-{seed}" for name, seed in jobs
    ]
    requests = [json.loads((folder / "request.json").read_text()) for folder in folders]
    spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(args.parallel, spawn) as pool:
        submitted = [
            pool.submit(score, folder, args.data, args.eval_images, trained=name != UNTRAINED)
            for folder, (name, _) in zip(folders, jobs, strict=True)
        ]
        results = {job: future.result() for job, future in zip(jobs, submitted, strict=True)}
    rows = []
    for name in names:
        runs = [results[name, seed] for seed in args.seeds]
        commits = {r["commit"] for job, r in zip(jobs, requests, strict=True) if job[0] == name}
        row = {"name": name, "runs_of_commits": [] if name == UNTRAINED else sorted(commits)}
        rows.append(row | {what: [run[what] for run in runs] for what in runs[0]})
    save(args, rows, table)


def score(folder: Path, data: str, num_images: int, *, trained: bool) -> dict[str, Any]:
    """Scores of the teacher in the folder of a run, or of its encoder before training."""
    torch.set_num_threads(1)
    result = json.loads((folder / "result.json").read_text())
    settings = argparse.Namespace(**result["settings"])
    if Path(settings.data).name != Path(data).name:
        raise ValueError(f"--data {data}: {folder} was trained on {settings.data}")
    train, test = load_images(data, image_size=settings.image_size)
    channels, *size = train[0][0].shape
    torch.manual_seed(settings.seed)
    model = module_of("examples/hjepa.py").build_student(settings, channels, tuple(size))
    if trained:
        model.load_state_dict(torch.load(folder / "teacher.pth", weights_only=True))
    encoder = model.encoder

    def pooled(pool: Literal["avg", "max"]) -> Encode:
        plain = jepakit.HierarchicalPyramid(
            encoder.grid_size, encoder.embed_dim, num_levels=2, pool=pool
        )
        return lambda images: plain(encoder(images))[1].features.flatten(1)

    kinds: dict[str, Encode] = {
        MEAN: encoder.extract_features,
        AVERAGES: pooled("avg"),
        MAXIMA: pooled("max"),
    }
    if trained and settings.levels > 1:
        kinds[OWN] = lambda images: model(images)[1].features.flatten(1)
    model.eval()
    prepare = PixelStatistics(*map(tuple, result["pixels"]))  # as in training
    scores = {
        kind: evaluate(encode, train, test, prepare=prepare, num_images=num_images)
        for kind, encode in kinds.items()
    }
    print(folder.name if trained else f"{UNTRAINED}-{settings.seed}", flush=True)
    return scores


def table(rows: list[dict[str, Any]]) -> str:
    """Means and ranges over the seeds; paired differences from the first trained row's levels."""
    first = rows[1]
    lines = [
        "| | | kNN-20 | linear probe | effective rank "
        f"| linear probe minus {first['name']}'s level 0 | minus its averages | minus its maxima |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for kind in (MEAN, AVERAGES, MAXIMA, OWN):
            if kind not in row:
                continue
            gains = []
            for other in (MEAN, AVERAGES, MAXIMA):
                same_level = (kind == MEAN) == (other == MEAN)
                itself = row is first and other == kind
                pairs = zip(row[kind], first[other], strict=True)
                compared = same_level and not itself
                gains.append(interval([a[1] - b[1] for a, b in pairs]) if compared else "")
            head = [row["name"] if kind == MEAN else "", kind, cells(row[kind])]
            lines.append(f"| {' | '.join([*head, *gains])} |")
    return "\n".join(lines)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="dataset of the runs")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the finished runs")
    parser.add_argument("--rows", nargs="+", required=True, help="names of rows of hierarchy.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--eval-images", type=int, default=10_000, help="largest number of images of each split"
    )
    parser.add_argument(
        "--parallel", type=int, default=os.cpu_count(), help="number of runs at a time"
    )
    parser.add_argument(
        "--write", type=Path, help="result file, .json; the table is written beside it"
    )
    args = parser.parse_args()
    for name in args.rows:
        for seed in args.seeds:
            if not (args.runs / f"{name}-{seed}" / "result.json").is_file():
                parser.error(f"--rows {name!r}: {args.runs} holds no finished run of seed {seed}")
    return args


if __name__ == "__main__":
    main()
