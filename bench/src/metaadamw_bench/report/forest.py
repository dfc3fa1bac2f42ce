"""Gains with their intervals: a picture an arm, a column a task, a line a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from metaadamw_bench.report import picture
from metaadamw_bench.report.collection import Collection
from metaadamw_bench.report.comparison import Comparison
from metaadamw_bench.report.document import Figure

__all__ = ["FOREST", "forest"]

_COLOURS = {"better": "#0072b2", "worse": "#d55e00", "undecided": "#6b6b6b"}


FOREST = (
    "Dot: mean paired gain in percent of the baseline's mean, right of 0 is better; line: 95 % "
    "bootstrap interval; small marks: single seeds. Blue: better, orange: worse, grey: undecided "
    "(paired t-test, Holm over tasks, p < 0.05). Each task has its own scale."
)


def forest(collection: Collection, arm: str) -> Figure | None:
    """Gains of one arm over every baseline on every task; None without any comparison."""
    comparisons = {
        baseline: collection.compare(arm, baseline, "whole run")
        for baseline in collection.baselines(arm)
    }
    comparisons = {baseline: found for baseline, found in comparisons.items() if found}
    tasks = [task for task in collection.tasks if any(task in c for c in comparisons.values())]
    if not tasks:
        return None
    return picture.render(
        lambda: _draw(comparisons, tasks),
        name=f"gains-{arm}-{collection.setting.slug}.png",
        title=f"gain of {arm}, whole runs",
    )


def _draw(comparisons: Mapping[str, Mapping[str, Comparison]], tasks: Sequence[str]) -> Drawing:
    size = (1.8 + 1.6 * len(tasks), 0.9 + 0.26 * len(comparisons))
    figure = Drawing(figsize=size, layout="constrained")
    columns = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for axes, task in zip(columns, tasks, strict=True):
        axes.axvline(0, color="#333333", linewidth=1)
        for line, by_task in enumerate(comparisons.values()):
            if task in by_task:
                _draw_line(axes, line, by_task[task])
        axes.set_title(task, fontsize=9)
        measured_on = next(c[task].measured_on for c in comparisons.values() if task in c)
        axes.set_xlabel(f"{measured_on}: gain, %", fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
        axes.tick_params(axis="y", length=0)
        axes.locator_params(axis="x", nbins=4)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="both", alpha=0.25)
        axes.set_axisbelow(True)
    columns[0].set_yticks(range(len(comparisons)), [*comparisons], fontsize=8)
    columns[0].set_ylim(len(comparisons) - 0.4, -0.6)
    return figure


def _draw_line(axes: Axes, line: int, found: Comparison) -> None:
    colour = _COLOURS[found.verdict]
    gains = np.array(found.gains) * found.percent
    axes.plot(gains, [line + 0.26] * len(gains), "|", color=colour, alpha=0.5, markersize=4)
    axes.plot(found.statistics.mean * found.percent, line, "o", color=colour, markersize=5)
    if found.statistics.interval is not None:
        ends = np.array(found.statistics.interval) * found.percent
        axes.plot(ends, [line, line], color=colour, linewidth=2)
