"""Runs boiled down to what a table shows: means, deviations, paired differences, costs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from metaadamw_bench.train import Run

__all__ = ["BASELINE", "Spread", "Summary", "summarise"]

BASELINE = "adamw"


@dataclass(frozen=True)
class Spread:
    """A mean and a sample standard deviation, the latter undefined (None) for one value."""

    mean: float
    sd: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Mean and sample standard deviation of at least one value."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def __format__(self, spec: str) -> str:
        """``mean ± sd``, each formatted by ``spec``; the sd never carries a sign."""
        if self.sd is None:
            return format(self.mean, spec)
        return f"{self.mean:{spec}} ± {self.sd:{spec.lstrip('+')}}"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One task and arm over all seeds.

    Attributes:
        task: name of the task.
        arm: name of the arm.
        seeds: the seeds.
        metric: the validation metric after the last step; nothing is picked on validation.
        loss: the validation loss after the last step.
        difference: the metric minus the baseline's at the same seed; None for the baseline.
        seconds: training and meta-updates of one run, without evaluation.
        step_overhead: seconds in ``optimizer.step()`` in units of the baseline's.
    """

    task: str
    arm: str
    seeds: list[int]
    metric: Spread
    loss: Spread
    difference: Spread | None
    seconds: Spread
    step_overhead: float


def summarise(runs: Sequence[Run], task: str, arm: str) -> Summary:
    """Summarise the runs of one task and arm; the baseline's runs must be among ``runs``."""
    own = {run.seed: run for run in runs if (run.task, run.arm) == (task, arm)}
    baseline = {run.seed: run for run in runs if (run.task, run.arm) == (task, BASELINE)}
    # Rounded far below what a metric resolves, so that equal accuracies differ by zero.
    differences = [
        round(run.evaluations[-1].metric - baseline[seed].evaluations[-1].metric, 9)
        for seed, run in own.items()
    ]
    return Summary(
        task=task,
        arm=arm,
        seeds=list(own),
        metric=Spread.of([run.evaluations[-1].metric for run in own.values()]),
        loss=Spread.of([run.evaluations[-1].loss for run in own.values()]),
        difference=None if arm == BASELINE else Spread.of(differences),
        seconds=Spread.of([run.seconds["train"] + run.seconds["meta"] for run in own.values()]),
        step_overhead=_step_seconds(own.values()) / _step_seconds(baseline.values()),
    )


def _step_seconds(runs: Iterable[Run]) -> float:
    return statistics.fmean(run.seconds["optimizer_step"] for run in runs)
