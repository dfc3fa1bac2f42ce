"""Figures 1 to 5: validation against steps and against compute, with bands over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle, product
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray

from metaadamw_bench.report import picture
from metaadamw_bench.report.collection import BASELINE, FAMILY, OURS, TUNED, Collection
from metaadamw_bench.report.comparison import best_within
from metaadamw_bench.report.document import Figure
from metaadamw_bench.report.paper import FIGURES
from metaadamw_bench.report.runs import FinishedRun

__all__ = ["CURVES", "curves"]

CURVES = (
    "Above the arms of MetaAdamW, below the others; AdamW as it is and tuned are in both. On the "
    "left, at equal steps: the validation metric, mean over seeds, the band one standard deviation "
    "to either side; dotted where some seeds have stopped early. On the right, at equal compute: "
    "the best validation metric so far against seconds of training and meta-updates; a run that "
    "has stopped keeps its best, dots mark the longest run. Where there are many arms, only the "
    "main ones have bands."
)

_COLOURS = {
    OURS: "#d55e00",
    "metaadamw-online": "#0072b2",
    "metaadamw-paper": "#009e73",
    BASELINE: "#333333",
    TUNED: "#8a8a8a",
    "adamw-cosine": "#cc79a7",
}
_FURTHER_COLOURS = ("#e69f00", "#56b4e9", "#8c564b", "#9467bd", "#bcbd22", "#17becf")
# Neither dotted, which is where seeds have stopped, nor a disc, which is where the longest ends.
_DASHES: tuple[Any, ...] = ("--", "-.", (0, (3, 1, 1, 1, 1, 1)))
_MARKERS = ("", "s", "^", "D", "v", "P", "X", "<", ">", "*", "p", "h")
_MARKED = 0.12  # of the picture's diagonal lies between two markers of a curve
_BANDED = (OURS, "metaadamw-paper", BASELINE, TUNED)
_FEW_ARMS = 4
"""So many fit into one row, each with its band."""
_POINTS = 200
_HEIGHT, _MARGIN, _ENTRY = 4.2, 0.8, 0.22
"""Inches: of a row of curves, and what its legend takes, around it and for each arm."""

_Arms = Mapping[str, Sequence[FinishedRun]]


class Style(NamedTuple):
    """What tells a curve from the others: colour, dashes and marker."""

    colour: str
    dashes: Any
    marker: str

    @property
    def options(self) -> dict[str, Any]:
        """For matplotlib."""
        return {
            "color": self.colour,
            "linestyle": self.dashes,
            "marker": self.marker,
            "markevery": _MARKED,
            "markersize": 5,
        }


def curves(collection: Collection, task: str) -> Figure | None:
    """The picture of one task; None without runs."""
    arms = {arm: collection.of(task, arm) for arm in collection.arms}
    arms = {arm: runs for arm, runs in arms.items() if runs}
    if not arms:
        return None
    slug = f"{task}-{collection.setting.slug}"
    number = f"Figure {FIGURES[task]}: " if task in FIGURES else ""
    prefix = f"figure{FIGURES[task]}-" if task in FIGURES else ""
    rows = [arms] if len(arms) <= _FEW_ARMS else _rows(arms)
    return picture.render(
        lambda: _draw(rows, _styles(collection.arms)),
        name=f"{prefix}{slug}.png",
        title=f"{number}{task} at equal steps and at equal compute",
    )


def _rows(arms: _Arms) -> list[_Arms]:
    """MetaAdamW and all else, AdamW in both; a single row where there is only one of them."""
    ours = {arm: runs for arm, runs in arms.items() if arm.startswith(FAMILY)}
    others = {arm: runs for arm, runs in arms.items() if arm not in ours}
    if not ours or not others:
        return [arms]
    references = {arm: runs for arm, runs in others.items() if arm in (BASELINE, TUNED)}
    return [{**ours, **references}, others]


def _draw(rows: Sequence[_Arms], styles: Mapping[str, Style]) -> Drawing:
    # A legend that is higher than its row would lose its first entries.
    heights = [max(_HEIGHT, _MARGIN + _ENTRY * len(arms)) for arms in rows]
    figure = Drawing(figsize=(12, sum(heights)), layout="constrained")
    bands = figure.subfigures(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
    for band, arms in zip(bands, rows, strict=True):
        by_step, by_compute = band.subplots(1, 2, sharey=True)
        for axes in (by_step, by_compute):
            _prepare(axes, arms)
        by_step.set_ylabel(next(iter(arms.values()))[0].metric_name)
        _draw_by_step(by_step, arms, styles)
        _draw_by_compute(by_compute, arms, styles)
        handles, names = by_step.get_legend_handles_labels()
        band.legend(
            *(handles, names),
            loc="outside right center",
            frameon=False,
            fontsize=9,
            handlelength=3.5,  # two of the longest dashes
        )
    return figure


def _prepare(axes: Axes, arms: _Arms) -> None:
    if next(iter(arms.values()))[0].direction == "minimize":
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(MaxNLocator(7))
        axes.yaxis.set_major_formatter("{x:g}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def _styles(arms: Sequence[str]) -> dict[str, Style]:
    """The style of each arm, in every picture of its setting; all different."""
    further = cycle(Style(c, d, m) for m, d, c in product(_MARKERS, _DASHES, _FURTHER_COLOURS))
    return {
        arm: Style(_COLOURS[arm], "-", "") if arm in _COLOURS else next(further) for arm in arms
    }


def _draw_by_step(axes: Axes, arms: _Arms, styles: Mapping[str, Style]) -> None:
    for arm, runs in arms.items():
        by_step: dict[int, list[float]] = {}
        for run in runs:
            for evaluation in run.evaluations:
                if math.isfinite(evaluation.metric):
                    by_step.setdefault(evaluation.step, []).append(evaluation.metric)
        steps = np.array(sorted(by_step))
        values = [np.array(by_step[step]) for step in steps]
        together = int(np.argmin([len(v) == len(runs) for v in values] + [False]))
        mean = np.array([v.mean() for v in values])
        deviation = np.array([v.std(ddof=1) if len(v) > 1 else 0.0 for v in values])
        style, colour = styles[arm].options, styles[arm].colour
        axes.plot(steps[:together], mean[:together], **style, label=arm, linewidth=1.8)
        rest = slice(max(together - 1, 0), None)
        axes.plot(steps[rest], mean[rest], ":", color=colour, linewidth=1.2)
        _band(axes, arm, len(arms), steps[:together], mean[:together], deviation[:together], colour)
    axes.set_xlabel("step")
    _epochs_on_top(axes, [run for runs in arms.values() for run in runs])


def _epochs_on_top(axes: Axes, runs: Sequence[FinishedRun]) -> None:
    """A second scale in epochs, where all runs have the same number of steps an epoch."""
    lengths = {run.steps_per_epoch for run in runs}
    if len(lengths) == 1 and (length := lengths.pop()):
        functions: Any = (lambda step: step / length, lambda epoch: epoch * length)
        top = axes.secondary_xaxis("top", functions=functions)
        top.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        top.set_xlabel("epoch")


def _draw_by_compute(axes: Axes, arms: _Arms, styles: Mapping[str, Style]) -> None:
    for arm, runs in arms.items():
        first = max(run.evaluations[0].seconds for run in runs)
        grid = np.linspace(first, max(run.compute for run in runs), _POINTS)
        table = np.array(
            [[_or_nan(best_within(run, "seconds", time)) for time in grid] for run in runs]
        )
        known = np.isfinite(table).all(axis=0)
        if not known.any():
            continue
        mean = table[:, known].mean(axis=0)
        deviation = table[:, known].std(axis=0, ddof=1) if len(runs) > 1 else np.zeros_like(mean)
        style, colour = styles[arm].options, styles[arm].colour
        axes.plot(grid[known], mean, **style, linewidth=1.8)
        axes.plot(grid[known][-1:], mean[-1:], "o", color=colour, markersize=4)
        _band(axes, arm, len(arms), grid[known], mean, deviation, colour)
    axes.set_xlabel("seconds of training and meta-updates")


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _band(
    axes: Axes,
    arm: str,
    arms: int,
    x: NDArray[np.float64],
    mean: NDArray[np.float64],
    deviation: NDArray[np.float64],
    colour: str,
) -> None:
    """A band of ± one standard deviation, of the main arms alone where there are many."""
    if arms <= _FEW_ARMS or arm in _BANDED:
        axes.fill_between(
            x, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0
        )
