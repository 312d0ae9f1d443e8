"""Pictures of the results, drawn from the result files of the benchmarks."""

import json
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from drawing import Theme, legend
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NAMES = {"cifar10_jpeg.npz": "CIFAR-10", "fashion_mnist.npz": "Fashion-MNIST"}


def rows_by_dataset() -> dict[str, list[dict[str, Any]]]:
    """Rows of all recipes with a result file, by dataset and machine."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for recipe in sorted((BENCHMARKS / "recipes").glob("*.toml")):
        path = BENCHMARKS / "results" / f"{recipe.stem}.json"
        if path.is_file():
            record = json.loads(path.read_text())
            name = NAMES.get(record["dataset"], record["dataset"])
            where = "" if "CPU" in record["machine"] else f", {record['machine']}"
            rows.setdefault(name + where, []).extend(record["rows"])
    return rows


def grid_without_frame(ax: Axes, theme: Theme) -> None:
    ax.tick_params(labelsize=8, length=0)
    ax.set_axisbelow(True)
    ax.grid(color=theme.hidden, lw=0.8)
    for spine in ax.spines.values():
        spine.set_visible(False)


def curves(theme: Theme) -> Figure:
    """Loss relative to its first value, and effective rank, for every seed of every recipe."""
    datasets = rows_by_dataset()
    figure, axes = plt.subplots(
        len(datasets), 2, figsize=(8.4, 2.6 * len(datasets)), squeeze=False, sharex="row"
    )
    titles = {row["title"]: None for rows in datasets.values() for row in rows}
    palette = cycle((theme.context, theme.target, theme.third, theme.fourth))
    colours = dict(zip(titles, palette, strict=False))
    for (loss, rank), (dataset, rows) in zip(axes, datasets.items(), strict=True):
        for row in rows:
            colour = colours[row["title"]]
            per_step = row["images"] / row["steps"] / 1000  # thousand images
            for seed, run in enumerate(row["curves"]):
                label = row["title"] if seed == 0 else None
                first = run["loss"][0][1]
                line(loss, [(s * per_step, v / first) for s, v in run["loss"]], colour, label)
                line(rank, [(s * per_step, v) for s, v in run["rank"]], colour, None)
        loss.set_title(f"{dataset}: loss relative to its first value", fontsize=9)
        rank.set_title("effective rank of a batch of features", fontsize=9)
        loss.legend(frameon=False, fontsize=8)
        for ax in (loss, rank):
            grid_without_frame(ax, theme)
            ax.set_xlabel("thousand images", fontsize=8.5)
    return figure


def line(ax: Axes, points: Sequence[tuple[float, float]], colour: str, label: str | None) -> None:
    x, y = zip(*points, strict=True)
    ax.plot(x, y, color=colour, lw=1.3, label=label)


def accuracies(theme: Theme) -> Figure:
    """kNN and probe of every recipe before and after training, a dot for each seed."""
    datasets = rows_by_dataset()
    heights = [len(rows) for rows in datasets.values()]
    figure, axes = plt.subplots(
        len(datasets), 2, figsize=(8.4, 0.5 + 0.55 * len(heights) + 0.32 * sum(heights)),
        squeeze=False, sharey="row", sharex=True, height_ratios=[2 + rows for rows in heights],
    )  # fmt: skip
    for panels, (dataset, rows) in zip(axes, datasets.items(), strict=True):
        probe = "attentive probe" if "frame" in rows[0] else "linear probe"
        for number, (ax, what) in enumerate(zip(panels, ("kNN-20", probe), strict=True)):
            ax.axvline(100 * rows[0]["raw"][0][number], color=theme.third, lw=1.6)
            for y, row in enumerate(rows):
                for key, fill in (("untrained", theme.page), ("trained", theme.context)):
                    x = [100 * run[number] for run in row[key]]
                    ax.plot(x, [y] * len(x), "o", ms=6, mec=theme.context, mfc=fill)
            ax.set_title(f"{dataset}: {what}", fontsize=9)
            grid_without_frame(ax, theme)
        panels[0].set_yticks(range(len(rows)), [row["title"] for row in rows])
        panels[0].set_ylim(len(rows) - 0.4, -0.6)
    for ax in axes[-1]:
        ax.set_xlabel("accuracy / %", fontsize=8.5)
    entries = [
        (theme.context, "trained; hollow: the same encoder untrained"),
        (theme.third, "raw pixels"),
    ]
    legend(figure, entries)
    return figure


PICTURES: dict[str, Callable[[Theme], Figure]] = {
    "results-accuracies": accuracies,
    "results-curves": curves,
}
