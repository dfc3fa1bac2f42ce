"""Gains with their intervals, a picture a task, a line a baseline."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure as Drawing

from metaadamw.bench.report import picture
from metaadamw.bench.report.collection import Collection
from metaadamw.bench.report.comparison import Comparison
from metaadamw.bench.report.document import Figures

__all__ = ["FOREST", "forest"]

_COLOURS = {"better": "#0072b2", "worse": "#d55e00", "undecided": "#6b6b6b"}


FOREST = (
    "Dot: mean paired gain in percent of the baseline's mean, right of 0 is better; line: 95 % "
    "bootstrap interval; small marks: single seeds. Blue: better, orange: worse, grey: undecided "
    "(paired t-test, Holm over tasks, p < 0.05)."
)


def forest(collection: Collection, arm: str) -> Figures | None:
    """Gains of one arm over every baseline, a picture a task; None without any comparison."""
    comparisons: dict[str, list[Comparison]] = {}
    for baseline in collection.baselines(arm):
        for task, found in collection.compare(arm, baseline, "whole run").items():
            comparisons.setdefault(task, []).append(found)
    tasks = [task for task in collection.tasks if task in comparisons]
    if not tasks:
        return None
    return Figures(
        small=True,
        figures=[
            picture.render(
                _draw(comparisons[task]),
                name=f"gains-{task}-{arm}-{collection.setting.slug}.png",
                title=f"{task}: gain of {arm}, {comparisons[task][0].measured_on}",
            )
            for task in tasks
        ],
    )


def _draw(comparisons: Sequence[Comparison]) -> Drawing:
    figure = Drawing(figsize=(4.6, 0.7 + 0.28 * len(comparisons)), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color="#333333", linewidth=1)
    for line, found in enumerate(comparisons):
        colour = _COLOURS[found.verdict]
        gains = np.array(found.gains) * found.percent
        axes.plot(gains, [line + 0.26] * len(gains), "|", color=colour, alpha=0.5, markersize=4)
        axes.plot(found.statistics.mean * found.percent, line, "o", color=colour, markersize=5)
        if found.statistics.interval is not None:
            ends = np.array(found.statistics.interval) * found.percent
            axes.plot(ends, [line, line], color=colour, linewidth=2)
    axes.set_yticks(
        range(len(comparisons)),
        [f"{found.baseline} (n = {len(found.seeds)})" for found in comparisons],
        fontsize=8,
    )
    axes.set_ylim(len(comparisons) - 0.4, -0.6)
    axes.set_xlabel("gain, %", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    return figure
