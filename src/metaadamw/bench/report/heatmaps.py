"""What MetaAdamW did to each group over time: α and β, mean over seeds."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure as Drawing

from metaadamw.bench.report import picture
from metaadamw.bench.report.collection import Collection
from metaadamw.bench.report.document import Figure
from metaadamw.bench.report.runs import Modulation

__all__ = ["HEAT_MAPS", "heat_map", "mean_over_seeds"]

HEAT_MAPS = (
    "α multiplies the learning rate, β the weight decay of a group of parameters; red is more "
    "than AdamW, blue is less, white is 1, AdamW itself. Each picture has its own scale."
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


def heat_map(collection: Collection, task: str, arm: str) -> Figure | None:
    """α above β, group × step; None without recorded histories."""
    runs = [run for run in collection.of(task, arm) if run.modulation is not None]
    histories = [run.modulation for run in runs if run.modulation is not None]
    histories = [history for history in histories if history.groups == histories[0].groups]
    if not histories:
        return None
    return picture.render(
        _draw(mean_over_seeds(histories)),
        name=f"modulation-{task}-{arm}-{collection.setting.slug}.png",
        title=f"{task}, {arm}, mean over {len(histories)} seed{'s' * (len(histories) > 1)}",
    )


def _draw(history: Modulation) -> Drawing:
    groups = len(history.groups)
    figure = Drawing(figsize=(7, 1.4 + 2 * max(1.2, 0.19 * groups)), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    # Halving is as far from 1 as doubling; a factor of 0 is as far as there are colours.
    with np.errstate(divide="ignore"):
        tables = {
            "α (learning rate)": np.log2(history.alpha).clip(-_MOST_REACH, _MOST_REACH),
            "β (weight decay)": np.log2(history.beta).clip(-_MOST_REACH, _MOST_REACH),
        }
    reach = max(_LEAST_REACH, *(np.nanmax(np.abs(values)) for values in tables.values()))
    # Cells end halfway between recorded steps.
    steps = history.steps
    inner = (steps[1:] + steps[:-1]) / 2
    edges = np.concatenate([steps[:1] - 0.5, inner, steps[-1:] + 0.5])
    for axes, (title, values) in zip(panels, tables.items(), strict=True):
        image = axes.pcolormesh(
            edges,
            np.arange(groups + 1) - 0.5,
            values.T,
            cmap="RdBu_r",
            vmin=-reach,
            vmax=reach,
            rasterized=True,
        )
        axes.set_yticks(range(groups), history.groups, fontsize=7)
        axes.invert_yaxis()
        axes.set_title(title, fontsize=10, loc="left")
    panels[-1].set_xlabel("step")
    figure.colorbar(
        image, ax=list(panels), pad=0.01, aspect=30, format=lambda power, _: f"{2**power:.3g}"
    )
    return figure
