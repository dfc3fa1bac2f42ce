"""What MetaAdamW did to each group over time: α and β, mean over seeds."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure as Drawing
from matplotlib.figure import SubFigure

from metaadamw_bench.report import picture
from metaadamw_bench.report.collection import Collection
from metaadamw_bench.report.document import Figure
from metaadamw_bench.report.runs import Modulation

__all__ = ["HEAT_MAPS", "heat_map", "mean_over_seeds"]

HEAT_MAPS = (
    "α multiplies the learning rate, β the weight decay of a group of parameters; red is more "
    "than AdamW, blue is less, white is 1, AdamW itself. Each task has its own scale. Where β is 1 "
    "throughout, α stands alone."
)

_LEAST_REACH, _MOST_REACH = 0.01, 6.0  # powers of two


def mean_over_seeds(histories: Sequence[Modulation]) -> Modulation:
    """Mean α and β over seeds, at the steps of the longest run.

    Runs may have been thinned differently and may have stopped at different steps: between two
    recorded steps the earlier one holds, and a run that has ended no longer counts.
    """
    longest = max(histories, key=lambda history: (history.steps[-1], len(history.steps)))
    means = []
    for name in ("alpha", "beta"):
        values = np.full((len(histories), len(longest.steps), len(longest.groups)), np.nan)
        for index, history in enumerate(histories):
            at = np.searchsorted(history.steps, longest.steps, side="right") - 1
            known = (at >= 0) & (longest.steps <= history.steps[-1])
            values[index, known] = getattr(history, name)[at[known]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a step that no run has recorded
            means.append(np.nanmean(values, axis=0))
    return Modulation(longest.steps, longest.groups, *means)


def heat_map(collection: Collection, arm: str) -> Figure | None:
    """α and β of an arm, a row a task, group × step; None without recorded histories."""
    means = {task: _mean(collection, task, arm) for task in collection.tasks}
    found = {task: mean for task, mean in means.items() if mean is not None}
    if not found:
        return None
    return picture.render(
        lambda: _draw(found),
        name=f"modulation-{arm}-{collection.setting.slug}.png",
        title=f"{arm}, mean over seeds",
    )


def _mean(collection: Collection, task: str, arm: str) -> Modulation | None:
    histories = [run.modulation for run in collection.of(task, arm) if run.modulation is not None]
    histories = [history for history in histories if history.groups == histories[0].groups]
    return mean_over_seeds(histories) if histories else None


def _draw(means: Mapping[str, Modulation]) -> Drawing:
    factors = {"alpha": "α (learning rate)", "beta": "β (weight decay)"}
    if all((mean.beta == 1).all() for mean in means.values()):
        del factors["beta"]  # nothing to see
    heights = [0.9 + 0.16 * max(4, len(mean.groups)) for mean in means.values()]
    figure = Drawing(figsize=(2.6 + 4 * len(factors), sum(heights)), layout="constrained")
    bands = figure.subfigures(len(means), 1, height_ratios=heights, squeeze=False)[:, 0]
    for band, (task, mean) in zip(bands, means.items(), strict=True):
        _draw_task(band, task, mean, factors)
    return figure


def _draw_task(band: SubFigure, task: str, history: Modulation, factors: Mapping[str, str]) -> None:
    # Halving is as far from 1 as doubling; a factor of 0 is as far as there are colours.
    with np.errstate(divide="ignore"):
        tables = [
            np.log2(getattr(history, name)).clip(-_MOST_REACH, _MOST_REACH) for name in factors
        ]
    reach = max(_LEAST_REACH, *(np.nanmax(np.abs(values)) for values in tables))
    # Cells end halfway between recorded steps.
    steps = history.steps
    inner = (steps[1:] + steps[:-1]) / 2
    edges = np.concatenate([steps[:1] - 0.5, inner, steps[-1:] + 0.5])
    groups = len(history.groups)
    panels = band.subplots(1, len(factors), sharey=True, squeeze=False)[0]
    for axes, title, values in zip(panels, factors.values(), tables, strict=True):
        image = axes.pcolormesh(
            edges,
            np.arange(groups + 1) - 0.5,
            values.T,
            cmap="RdBu_r",
            vmin=-reach,
            vmax=reach,
            rasterized=True,
        )
        axes.set_title(f"{task}: {title}", fontsize=9, loc="left")
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
    panels[0].set_yticks(range(groups), history.groups, fontsize=7)
    panels[0].invert_yaxis()
    colours = band.colorbar(image, ax=list(panels), pad=0.01, format=lambda p, _: f"{2**p:.3g}")
    colours.ax.tick_params(labelsize=7)
