"""Pictures of the page on diagnostics: four runs and the monitor's warnings."""

from collections.abc import Callable

import torch
from drawing import Theme
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from jepakit import CollapseMonitor

START, STEPS, DIM = 20, 60, 32


def runs() -> dict[str, Callable[[int, torch.Tensor], torch.Tensor]]:
    """Features as functions of the steps since the collapse began and of random features."""
    first_two = torch.arange(DIM) < 2
    generator = torch.Generator().manual_seed(1)
    basis, _ = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator))
    low_rank = 4 * 0.5 ** torch.arange(DIM)
    return {
        "full": lambda steps, x: x * 0.7**steps,
        "dimensional": lambda steps, x: x * torch.where(first_two, 1, 0.8**steps),
        "slow": lambda steps, x: x * 0.95**steps,
        "low rank, no collapse": lambda steps, x: x * low_rank @ basis,
    }


def collapses(theme: Theme) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 2.7))
    colours = (theme.target, theme.third, theme.context, theme.faint)
    for (name, run), colour in zip(runs().items(), colours, strict=True):
        monitor = CollapseMonitor(action="record")
        generator = torch.Generator().manual_seed(0)
        reports = []
        for step in range(STEPS):
            x = torch.randn(128, DIM, generator=generator)
            report = monitor.update(run(max(0, step - START), x))
            reports += [report] if report else []
        for ax, field in zip(axes, ("std", "rank"), strict=True):
            values = [getattr(observation, field) for observation in monitor.history]
            ax.plot(range(STEPS), values, color=colour, lw=1.5, label=name)
            for report in reports[:1]:
                ax.plot(report.step, values[report.step], "o", color=colour, ms=6)
    for ax, label in zip(axes, ("standard deviation", "effective rank"), strict=True):
        ax.set_title(label, fontsize=9)
        ax.set_xlabel("step", fontsize=8.5)
        ax.set_ylim(bottom=0)
        ax.tick_params(labelsize=8, length=0)
        for side, spine in ax.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(theme.faint)
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=8.5,
        labelcolor=theme.text,
    )
    return figure


PICTURES: dict[str, Callable[[Theme], Figure]] = {"collapses": collapses}
