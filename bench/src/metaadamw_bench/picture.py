"""The demo's picture: for each task the loss, the paired difference, and α and β over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from metaadamw_bench.arm import Arm
from metaadamw_bench.summary import BASELINE, summarise
from metaadamw_bench.tasks import Task
from metaadamw_bench.train import Run

__all__ = ["draw"]

_COLOURS = ("#4d4d4d", "#d55e00", "#0072b2")
_LOSS_TICKS = (1, 1.5, 2, 3, 5, 7)  # times a power of ten


def draw(tasks: Sequence[Task], arms: Sequence[Arm], runs: Sequence[Run], path: Path) -> None:
    """Draw all runs into one picture file.

    Args:
        tasks: the tasks, one band of the picture each.
        arms: the arms, in the order of the legend.
        runs: the runs of all tasks, arms and seeds.
        path: the file to write.
    """
    by_task = [[run for run in runs if run.task == task.name] for task in tasks]
    heights = [_height(task_runs) for task_runs in by_task]
    figure = Figure(figsize=(17, sum(heights)), layout="constrained")
    bands = figure.subfigures(len(tasks), 1, height_ratios=heights, hspace=0.04, squeeze=False)
    for band, task, task_runs in zip(bands[:, 0], tasks, by_task, strict=True):
        _draw_task(band, task, arms, task_runs)
    figure.savefig(path, dpi=140)


def _height(runs: Sequence[Run]) -> float:
    groups = max(len(run.groups) for run in runs)
    return 3.0 + 2 * max(1.6, 0.16 * groups)


def _draw_task(figure: SubFigure, task: Task, arms: Sequence[Arm], runs: Sequence[Run]) -> None:
    seeds = sorted({run.seed for run in runs})
    over = f"{len(seeds)} seeds" if len(seeds) > 1 else "1 seed"
    figure.suptitle(f"{task.name}: {task.title} ({over})", fontsize=14, fontweight="bold")
    modulated = [arm for arm in arms if any(run.groups for run in runs if run.arm == arm.name)]
    left, right = figure.subfigures(1, 2, width_ratios=(1, 2), squeeze=False)[0]
    loss_axes, difference_axes = left.subplots(2, 1, sharex=True)
    _draw_losses(loss_axes, task, arms, runs)
    _draw_differences(difference_axes, arms, runs)
    _draw_heat_maps(right, modulated, runs)


def _validation_losses(runs: Sequence[Run], arm: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Steps [E] and validation losses [seeds, E] of one arm."""
    own = sorted((run for run in runs if run.arm == arm), key=lambda run: run.seed)
    steps = np.array([evaluation.step for evaluation in own[0].evaluations])
    return steps, np.array([[evaluation.loss for evaluation in run.evaluations] for run in own])


def _draw_losses(axes: Axes, task: Task, arms: Sequence[Arm], runs: Sequence[Run]) -> None:
    for arm, colour in zip(arms, _COLOURS, strict=False):
        steps, losses = _validation_losses(runs, arm.name)
        final = summarise(runs, task.name, arm.name).metric
        _line_with_band(axes, steps, losses, colour, f"{arm.title}: {final:.2f}")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=_LOSS_TICKS))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title("validation loss: mean and range over seeds")
    axes.legend(frameon=False, title=f"{task.metric.name}, after the last step", alignment="left")


def _draw_differences(axes: Axes, arms: Sequence[Arm], runs: Sequence[Run]) -> None:
    _, baseline = _validation_losses(runs, BASELINE)
    axes.axhline(0, color=_COLOURS[0])
    for arm, colour in zip(arms, _COLOURS, strict=False):
        if arm.name != BASELINE:
            steps, losses = _validation_losses(runs, arm.name)
            _line_with_band(axes, steps, losses - baseline, colour, arm.title)
    axes.set_title("validation loss minus AdamW's of the same seed; below 0 is better")
    axes.set_xlabel("step")


def _line_with_band(
    axes: Axes, steps: NDArray[Any], values: NDArray[Any], colour: str, label: str
) -> None:
    axes.plot(steps, values.mean(axis=0), color=colour, label=label, linewidth=1.8)
    axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.18)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def _draw_heat_maps(figure: SubFigure, arms: Sequence[Arm], runs: Sequence[Run]) -> None:
    """α and β of each arm, mean over seeds, on a colour scale of its own; white is AdamW."""
    grid = figure.subplots(len(arms), 2, sharex=True, sharey=True, squeeze=False)
    for (alpha_axes, beta_axes), arm in zip(grid, arms, strict=True):
        own = [run for run in runs if run.arm == arm.name]
        alpha = np.log2([run.alpha for run in own]).mean(axis=0).T  # [groups, steps]
        beta = np.log2([run.beta for run in own]).mean(axis=0).T
        reach = max(0.01, np.abs(alpha).max(), np.abs(beta).max())
        _heat_map(alpha_axes, alpha, reach).set_title(f"{arm.title}: α (learning rate)")
        _heat_map(beta_axes, beta, reach).set_title(f"{arm.title}: β (weight decay)")
        alpha_axes.set_yticks(range(len(alpha)), own[0].groups, fontsize=8)
        figure.colorbar(
            beta_axes.images[0],
            ax=(alpha_axes, beta_axes),
            label="geometric mean over seeds; 1 is AdamW",
            format=FuncFormatter(lambda power, _: f"{2**power:.3g}"),
            pad=0.01,
            aspect=25,
        )
    for axes in grid[-1]:
        axes.set_xlabel("step")


def _heat_map(axes: Axes, values: NDArray[Any], reach: float) -> Axes:
    groups, steps = values.shape
    axes.imshow(
        values,
        aspect="auto",
        cmap="RdBu_r",
        interpolation="nearest",
        vmin=-reach,
        vmax=reach,
        extent=(0.5, steps + 0.5, groups - 0.5, -0.5),
    )
    return axes
