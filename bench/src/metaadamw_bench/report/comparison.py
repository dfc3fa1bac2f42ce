"""Paired comparisons: differences over common seeds, intervals, tests, Holm's correction."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from metaadamw_bench.report.runs import FinishedRun

__all__ = [
    "BUDGETS",
    "SIGNIFICANT",
    "Budget",
    "Comparison",
    "Paired",
    "best_within",
    "compare",
    "holm",
    "paired_statistics",
]

Budget = Literal["whole run", "equal steps", "equal compute"]
BUDGETS: tuple[Budget, ...] = ("whole run", "equal steps", "equal compute")
SIGNIFICANT = 0.05
FEWEST_SEEDS = 5
_RESAMPLES = 9_999
_FEWEST_FOR_AN_INTERVAL = 3
_MOST_FOR_EVERY_SIGN = 13  # as in scipy
# Far below what one example more or less makes.
_ROUNDING = 1e-7


class Paired(NamedTuple):
    """Statistics of paired gains; what too few or equal values do not decide is None.

    Attributes:
        mean: the mean gain.
        interval: 95 % bootstrap interval (BCa) of the mean.
        t: two-sided p of the paired t-test.
        wilcoxon: two-sided p of Wilcoxon's signed-rank test.
    """

    mean: float
    interval: tuple[float, float] | None
    t: float | None
    wilcoxon: float | None


def paired_statistics(gains: Sequence[float]) -> Paired:
    """Statistics of at least one paired gain."""
    values = np.asarray(gains, dtype=np.float64)
    mean = float(values.mean())
    if not values.any():
        return Paired(0.0, (0.0, 0.0), 1.0, 1.0)
    if len(values) < 2 or np.ptp(values) <= 1e-12 * abs(mean):
        return Paired(mean, None, None, None)
    interval = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # small samples; the text below the tables says so
        if len(values) >= _FEWEST_FOR_AN_INTERVAL:
            scale = float(np.abs(values).max())
            bootstrap = stats.bootstrap(
                (values / scale,),
                _mean,
                n_resamples=_RESAMPLES,
                method="BCa",
                rng=np.random.default_rng(0),
            )
            low, high = (scale * float(end) for end in bootstrap.confidence_interval)
            interval = (low, high) if math.isfinite(low + high) else None
        t = float(stats.ttest_1samp(values, 0.0).pvalue)
        wilcoxon = _wilcoxon(values)
    return Paired(mean, interval, t, wilcoxon)


def _wilcoxon(values: NDArray[np.float64]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test.

    With ties or zeros, which accuracies have, scipy goes through all 2ⁿ signs one by one; this
    gives it all of them at once.
    """
    zeros = np.count_nonzero(values == 0)
    tied = zeros > 0 or len(np.unique(np.abs(values))) < len(values)
    if not tied or len(values) > _MOST_FOR_EVERY_SIGN:
        return float(stats.wilcoxon(values).pvalue)
    p = stats.permutation_test(
        (values,),
        lambda d, axis: ((stats.rankdata(np.abs(d), axis=axis) - zeros) * (d > 0)).sum(axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    ).pvalue
    return float(p)


def _mean(values: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    """Means of values of at most 1, without what rounding adds to them.

    Of five values, one resample in 26 holds each once: BCa has to see that its mean is the
    sample's, or last bits move the interval.
    """
    mean: NDArray[np.float64] = np.mean(values, axis=axis).round(12)
    return mean


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the smallest p times n, the next times n − 1, and so on."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One arm against a baseline on one task; gains are positive where the arm is better.

    Attributes:
        task: name of the task.
        arm: name of the arm.
        baseline: name of the baseline.
        budget: what both were given.
        measured_on: ``test`` or ``validation``.
        seeds: the common seeds.
        values: the arm's metric per seed.
        baseline_values: the baseline's metric per seed.
        gains: differences, signed so that positive is better.
        statistics: of the gains.
        t_holm: p of the t-test, corrected over tasks.
        wilcoxon_holm: p of Wilcoxon's test, corrected over tasks.
    """

    task: str
    arm: str
    baseline: str
    budget: Budget
    measured_on: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    baseline_values: tuple[float, ...]
    gains: tuple[float, ...]
    statistics: Paired
    t_holm: float | None = None
    wilcoxon_holm: float | None = None

    @property
    def percent(self) -> float:
        """Percent of the baseline's mean that a gain of one is worth."""
        return 100 / abs(float(np.mean(self.baseline_values)))

    @property
    def verdict(self) -> Literal["better", "worse", "undecided"]:
        """Decided by the t-test after Holm's correction; two or three seeds decide nothing."""
        if len(self.seeds) < FEWEST_SEEDS or self.t_holm is None or self.t_holm >= SIGNIFICANT:
            return "undecided"
        return "better" if self.statistics.mean > 0 else "worse"


def compare(
    runs: Sequence[FinishedRun],
    arm: str,
    baseline: str,
    budget: Budget,
    ablation: str | None = None,
) -> list[Comparison]:
    """Compare two arms on every task where they have seeds in common.

    A budget that ends before the first evaluation of a run, in one seed or more, allows none.

    Args:
        runs: the runs of one setting.
        arm: the arm.
        baseline: the arm it is measured against; its runs set the budget, seed by seed.
        budget: the whole of both runs, or what the baseline's run took in steps or in seconds
            of training and meta-updates.
        ablation: of the arm; the baseline has none.
    """
    comparisons = []
    all_mine, all_theirs = _by_task(runs, arm, ablation), _by_task(runs, baseline, None)
    for task in dict.fromkeys(run.cell.task for run in runs):
        mine, theirs = all_mine.get(task, {}), all_theirs.get(task, {})
        pairs = {seed: (mine[seed], theirs[seed]) for seed in sorted(mine.keys() & theirs.keys())}
        on_test = budget == "whole run" and all(
            run.test_metric is not None for pair in pairs.values() for run in pair
        )
        score = _score(budget, on_test)
        scored = {
            seed: (mine_scored, theirs_scored)
            for seed, (a, b) in pairs.items()
            if (mine_scored := score(a, b)) is not None
            and (theirs_scored := score(b, b)) is not None
        }
        # Where some seeds have no score under the budget, those that do are the lucky ones.
        if not scored or len(scored) < len(pairs):
            continue
        sign = 1 if next(iter(mine.values())).direction == "maximize" else -1
        values, baseline_values = zip(*scored.values(), strict=True)
        gains = tuple(0.0 if _equal(a, b) else sign * (a - b) for a, b in scored.values())
        comparisons.append(
            Comparison(
                task=task,
                arm=arm,
                baseline=baseline,
                budget=budget,
                measured_on="test" if on_test else "validation",
                seeds=tuple(scored),
                values=values,
                baseline_values=baseline_values,
                gains=gains,
                statistics=paired_statistics(gains),
            )
        )
    return _corrected(comparisons)


def _by_task(
    runs: Sequence[FinishedRun], arm: str, ablation: str | None
) -> dict[str, dict[int, FinishedRun]]:
    """The runs of an arm by task and seed."""
    found: dict[str, dict[int, FinishedRun]] = {}
    for run in runs:
        if run.cell[2:] == (arm, ablation):
            found.setdefault(run.cell.task, {})[run.seed] = run
    return found


def _corrected(comparisons: list[Comparison]) -> list[Comparison]:
    t = _holm_where_given([c.statistics.t for c in comparisons])
    wilcoxon = _holm_where_given([c.statistics.wilcoxon for c in comparisons])
    return [
        replace(comparison, t_holm=p, wilcoxon_holm=q)
        for comparison, p, q in zip(comparisons, t, wilcoxon, strict=True)
    ]


def _holm_where_given(p_values: Sequence[float | None]) -> list[float | None]:
    adjusted = iter(holm([p for p in p_values if p is not None]))
    return [None if p is None else next(adjusted) for p in p_values]


def _score(budget: Budget, on_test: bool) -> Callable[[FinishedRun, FinishedRun], float | None]:
    """``score(run, limit)``: the run's metric within what the run ``limit`` took."""

    def score(run: FinishedRun, limit: FinishedRun) -> float | None:
        if on_test:
            return run.test_metric
        if budget == "whole run":
            return run.best_metric
        if budget == "equal steps":
            return best_within(run, "step", limit.steps)
        return best_within(run, "seconds", limit.compute)

    return score


def _equal(first: float, second: float) -> bool:
    """Equal accuracies may differ by the rounding of float32 batch means; they tie."""
    return math.isclose(first, second, rel_tol=_ROUNDING)


def best_within(run: FinishedRun, clock: Literal["step", "seconds"], limit: float) -> float | None:
    """The best validation metric a run reached within a number of steps or seconds.

    Between two evaluations the best so far is interpolated, so that an arm that is a hair slower
    than the limit loses a hair, not its last evaluation. None before the first evaluation.
    """
    evaluations = [e for e in run.evaluations if math.isfinite(e.metric)]
    times = [float(getattr(evaluation, clock)) for evaluation in evaluations]
    if not times or limit < times[0]:
        return None
    minimum = run.direction == "minimize"
    accumulate = np.minimum.accumulate if minimum else np.maximum.accumulate
    best = accumulate([evaluation.metric for evaluation in evaluations])
    return float(np.interp(limit, times, best))
