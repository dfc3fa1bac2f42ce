"""Seconds as if all runs of a task had been made on the same machine, on the same day.

The forward and backward passes of a step are the same whatever the optimizer is. How long they
took in a run tells how fast its machine was that day, and all its seconds are converted to a
machine on which they take as long as in the middle one of AdamW's runs. What is left of a
difference is what the optimizers themselves take.

That a slow day slows both alike is an assumption: an optimizer's share of a step differs between
days by a percentage point or two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from metaadamw_bench.report.runs import FinishedRun

__all__ = ["on_one_machine"]


def on_one_machine(runs: Sequence[FinishedRun], baseline: str) -> list[FinishedRun]:
    """The runs with their seconds converted.

    Args:
        runs: in any order; they are converted by setting and task.
        baseline: the arm whose machine it is; where a task has no run of it, that of all arms.
    """
    kinds: dict[tuple[object, str], list[FinishedRun]] = {}
    for run in runs:
        if _passes(run) > 0:
            kinds.setdefault((run.cell.setting, run.cell.task), []).append(run)
    common = {kind: _middle(alike, baseline) for kind, alike in kinds.items()}
    return [_converted(run, common.get((run.cell.setting, run.cell.task))) for run in runs]


def _middle(runs: Sequence[FinishedRun], baseline: str) -> float:
    of_baseline = [_passes(run) for run in runs if run.cell.arm == baseline]
    return median(of_baseline or [_passes(run) for run in runs])


def _passes(run: FinishedRun) -> float:
    """Seconds of a step's forward and backward passes."""
    return (run.compute - run.optimization) / run.steps if run.steps else 0.0


def _converted(run: FinishedRun, passes: float | None) -> FinishedRun:
    own = _passes(run)
    if passes is None or own <= 0:
        return run
    factor = passes / own
    return replace(
        run,
        seconds={name: factor * value for name, value in run.seconds.items()},
        evaluations=tuple(
            evaluation._replace(seconds=factor * evaluation.seconds)
            for evaluation in run.evaluations
        ),
    )
