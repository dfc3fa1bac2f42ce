"""The runs of one setting as the tables ask for them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from metaadamw_bench.report.comparison import Budget, Comparison, compare
from metaadamw_bench.report.paper import PAPER
from metaadamw_bench.report.runs import FinishedRun, LeftOut
from metaadamw_bench.report.setting import Cell, Setting

__all__ = [
    "BASELINE",
    "FAMILY",
    "OURS",
    "TUNED",
    "Collection",
    "arm_order",
    "mean_and_deviation",
    "task_order",
]

BASELINE = "adamw"
TUNED = "adamw-tuned"
FAMILY = "metaadamw"
OURS = "metaadamw-two-horizons"
"""The configuration that the claims are about."""
SCHEDULED = f"{OURS}-cosine"
"""The same under a schedule."""

# What a reader compares first stands first; other arms follow by name.
_FIRST = (
    *(OURS, SCHEDULED, "metaadamw-factors"),
    *("metaadamw-slow-mean", "metaadamw-slow-mean-attention", "metaadamw-carried"),
    *("metaadamw-redistribution", "metaadamw-redistribution-cosine"),
    *("metaadamw-scalars", "metaadamw-window"),
    *("metaadamw", "metaadamw-online", "metaadamw-paper"),
    *(BASELINE, TUNED, "adamw-cosine", "adamw-tuned-cosine"),
)

# What other authors propose, or what tells learning from chance: to be beaten.
_BASELINES_ONLY = ("metaadamw-as-run", "metaadamw-random", "metaadamw-carried-frozen")
_CONTROLS = (
    *(OURS, "metaadamw-factors", "metaadamw-slow-mean", "metaadamw-scalars"),
    *("metaadamw-redistribution-cosine", "metaadamw-paper"),
    *_BASELINES_ONLY,
)


def arm_order(arm: str) -> tuple[int, str]:
    """Sort key: MetaAdamW, AdamW, then the others by name."""
    return (_FIRST.index(arm) if arm in _FIRST else len(_FIRST), arm)


def task_order(task: str) -> tuple[int, str]:
    """Sort key: the paper's tasks in the paper's order, then the others by name."""
    return (list(PAPER).index(task) if task in PAPER else len(PAPER), task)


def mean_and_deviation(values: Iterable[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation, the latter None for a single value."""
    given = list(values)
    return statistics.fmean(given), statistics.stdev(given) if len(given) > 1 else None


@dataclass(frozen=True)
class Collection:
    """Finished runs of one setting, and what was left out of it.

    Attributes:
        setting: the setting.
        runs: its finished runs.
        left_out: its runs that failed or diverged.
        roots: the directories as they are given on the command line.
    """

    setting: Setting
    runs: Sequence[FinishedRun]
    left_out: Sequence[LeftOut]
    roots: Sequence[str]

    @cached_property
    def plain(self) -> list[FinishedRun]:
        """The runs without ablations."""
        return [run for run in self.runs if run.cell.ablation is None]

    @cached_property
    def tasks(self) -> list[str]:
        """Tasks that have runs."""
        return sorted({run.cell.task for run in self.runs}, key=task_order)

    @cached_property
    def arms(self) -> list[str]:
        """Arms that have runs without ablations, or tried to."""
        cells = [run.cell for run in self.runs] + [o.cell for o in self.left_out if o.cell]
        return sorted({cell.arm for cell in cells if cell.ablation is None}, key=arm_order)

    @cached_property
    def contenders(self) -> list[str]:
        """The arms that are measured against every baseline: the paper's and our MetaAdamW."""
        return [arm for arm in self.arms if arm.startswith(FAMILY) and arm not in _BASELINES_ONLY]

    def baselines(self, arm: str) -> list[str]:
        """What an arm is measured against: all that is not MetaAdamW, and the controls."""
        return [
            other
            for other in self.arms
            if other != arm and (not other.startswith(FAMILY) or other in _CONTROLS)
        ]

    def of(self, task: str, arm: str, ablation: str | None = None) -> list[FinishedRun]:
        """The runs of one cell, by seed."""
        cell = Cell(self.setting, task, arm, ablation)
        return [run for run in self.runs if run.cell == cell]

    def lost(self, task: str, arm: str, ablation: str | None = None) -> int:
        """How many runs of a cell failed or diverged."""
        cell = Cell(self.setting, task, arm, ablation)
        return sum(entry.cell == cell for entry in self.left_out)

    def compare(
        self, arm: str, baseline: str, budget: Budget, ablation: str | None = None
    ) -> dict[str, Comparison]:
        """Comparisons of two arms by task, computed once."""
        key = (arm, baseline, budget, ablation)
        if key not in self._comparisons:
            found = compare(self.runs, *key)
            self._comparisons[key] = {comparison.task: comparison for comparison in found}
        return self._comparisons[key]

    @cached_property
    def _comparisons(self) -> dict[tuple[str, str, Budget, str | None], dict[str, Comparison]]:
        return {}
