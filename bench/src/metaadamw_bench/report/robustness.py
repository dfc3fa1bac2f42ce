"""How much quality an arm loses when its learning rate is off."""

from __future__ import annotations

from statistics import fmean
from typing import NamedTuple

from metaadamw_bench.places import RATE
from metaadamw_bench.report import numbers
from metaadamw_bench.report.collection import BASELINE, OURS, Collection
from metaadamw_bench.report.commands import report_command, run_commands
from metaadamw_bench.report.document import Table

__all__ = ["Robustness", "by_learning_rate", "rates_table", "robustness"]

_RANGE = 4.0
_FEWEST_RATES = 3
_ROOM = 1 + 1e-6


def rates_table(collection: Collection, task: str) -> Table | None:
    """Metric by learning rate and arm; None where no arm ran with more than one."""
    found = {arm: by_learning_rate(collection, task, arm) for arm in collection.arms}
    found = {arm: values for arm, values in found.items() if len(values) > 1}
    rates = sorted({rate for values in found.values() for rate in values})
    if not rates:
        return None
    rows = [
        [f"{rate:g}", *(_cell(values.get(rate, {})) for values in found.values())] for rate in rates
    ]
    runs = [run for run in collection.runs if run.cell.task == task and run.cell.arm in found]
    return Table(
        title=f"{task}: best validation metric by learning rate",
        header=["learning rate", *found],
        rows=rows,
        note="Mean ± standard deviation (number of seeds).",
        commands=[
            *run_commands(r for r in runs if r.cell.ablation is None or r.is_rate_variant),
            report_command(collection.roots),
        ],
    )


def _cell(values: dict[int, float]) -> str:
    return f"{numbers.spread(values.values())} ({len(values)})" if values else ""


class Robustness(NamedTuple):
    """Largest losses over learning rates within 4× of AdamW's best, each from the arm's own best.

    Means over the seeds that both arms have with each of these rates.

    Attributes:
        task: name of the task.
        rates: the learning rates that both arms ran with.
        loss: MetaAdamW's largest loss in percent.
        adamw_loss: AdamW's.
        gain: of MetaAdamW where it is worst on AdamW where it is best, in percent.
        whole: whether the rates span the whole range on both sides.
        seeds: how many seeds there are.
        lost: how many runs of MetaAdamW within the range failed or diverged.
    """

    task: str
    rates: tuple[float, ...]
    loss: float
    adamw_loss: float
    gain: float
    whole: bool
    seeds: int
    lost: int

    @property
    def ratio(self) -> float:
        """MetaAdamW's loss in units of AdamW's."""
        return self.loss / self.adamw_loss if self.adamw_loss > 0 else float(self.loss > 0)


def by_learning_rate(collection: Collection, task: str, arm: str) -> dict[float, dict[int, float]]:
    """Best validation metrics by learning rate and seed; runs that differ in nothing else."""
    values: dict[float, dict[int, float]] = {}
    for run in collection.runs:
        plain = run.cell.ablation is None or run.is_rate_variant
        if plain and (run.cell.task, run.cell.arm) == (task, arm):
            values.setdefault(run.rate, {})[run.seed] = run.best_metric
    return dict(sorted(values.items()))


def robustness(collection: Collection, task: str) -> Robustness | None:
    """Compare the default arm with AdamW; None with fewer than three common learning rates."""
    mine = by_learning_rate(collection, task, OURS)
    theirs = by_learning_rate(collection, task, BASELINE)
    if not mine or not theirs:
        return None
    runs = collection.of(task, BASELINE) or collection.of(task, OURS)
    sign = 1 if runs and runs[0].direction == "maximize" else -1
    best = max(theirs, key=lambda rate: sign * fmean(theirs[rate].values()))
    low, high = best / _RANGE / _ROOM, best * _RANGE * _ROOM
    rates = tuple(rate for rate in sorted(mine.keys() & theirs.keys()) if low <= rate <= high)
    if len(rates) < _FEWEST_RATES or best not in rates:
        return None
    seeds = set.intersection(*(set(arm[rate]) for arm in (mine, theirs) for rate in rates))
    if not seeds:
        return None
    ours, adamw = (
        [sign * fmean(arm[rate][seed] for seed in seeds) for rate in rates]
        for arm in (mine, theirs)
    )
    return Robustness(
        task,
        rates,
        loss=_loss(max(ours), min(ours)),
        adamw_loss=_loss(max(adamw), min(adamw)),
        gain=-_loss(max(adamw), min(ours)),
        whole=rates[0] <= best / _RANGE * _ROOM and rates[-1] >= best * _RANGE / _ROOM,
        seeds=len(seeds),
        lost=_lost(collection, task, low, high),
    )


def _lost(collection: Collection, task: str, low: float, high: float) -> int:
    """The runs of MetaAdamW that a mean over learning rates within these limits lacks."""
    return sum(
        entry.cell is not None
        and entry.cell[1:3] == (task, OURS)
        and (entry.cell.ablation or RATE).startswith(RATE)
        and low <= entry.settings["lr"] <= high
        for entry in collection.left_out
    )


def _loss(best: float, worst: float) -> float:
    """From the best quality to the worst, in percent of the best."""
    return 100 * (best - worst) / abs(best)
