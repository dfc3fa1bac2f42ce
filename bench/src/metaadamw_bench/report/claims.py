"""The claims this project set itself, each decided by the runs or said to be undecided."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import fmean

from metaadamw_bench.report import numbers
from metaadamw_bench.report.collection import BASELINE, OURS, SCHEDULED, TUNED, Collection
from metaadamw_bench.report.comparison import Budget, Comparison
from metaadamw_bench.report.document import Result, Verdict
from metaadamw_bench.report.paper import PAPER
from metaadamw_bench.report.robustness import robustness

__all__ = ["claims"]

_SEEDS = 10
_TASKS_BETTER = 4
_MOST_OVERHEAD = 0.03
_MOST_OF_ADAMWS_LOSS = 0.5
_COSINE, _TUNED_COSINE = "adamw-cosine", "adamw-tuned-cosine"
_REDISTRIBUTED = "metaadamw-redistribution-cosine"


def claims(collections: Sequence[Collection]) -> list[Verdict]:
    """The five claims; runs of another length than the tasks' own decide none."""
    whole = [c for c in collections if c.setting[2:] == (None, None)]
    clean = [c for c in whole if c.setting.protocol == "clean"]
    original = [c for c in whole if c.setting[:2] == ("paper", "full")]
    return [
        _verdict(
            f"1. One default configuration is better than AdamW tuned at equal budget on at least "
            f"{_TASKS_BETTER} of the paper's 5 tasks and worse on none, {_SEEDS} paired seeds each",
            clean,
            lambda collection: _better_than_tuned(collection, "whole run"),
        ),
        _verdict(
            "2. At least equal to AdamW with a cosine schedule when MetaAdamW has the same "
            "schedule: worse on no task, and not behind on average",
            clean,
            _equal_to_cosine,
        ),
        _verdict(
            "3. With the base learning rate anywhere within 4× of AdamW's optimum, the loss of "
            "quality is at most half of AdamW's",
            clean,
            _robust,
        ),
        _verdict(
            f"4. At most {100 * _MOST_OVERHEAD:.0f} % more wall-clock per step than "
            "torch.optim.AdamW as it is by default (on a CPU neither fused nor foreach), and "
            "better than tuned AdamW also at equal wall-clock, as in claim 1",
            clean,
            _cheap,
        ),
        _verdict(
            "5. Beyond the paper's own MetaAdamW numbers under the paper protocol, on every task "
            "that was run at full size",
            original,
            _beyond_the_paper,
        ),
    ]


def _verdict(
    claim: str, collections: Sequence[Collection], judge: Callable[[Collection], Result]
) -> Verdict:
    results = [judge(c)._replace(setting=c.setting.title) for c in collections]
    return Verdict(claim=claim, results=results or [Result("", "no data", "no such runs.")])


def _better_than_tuned(collection: Collection, budget: Budget) -> Result:
    """Better on four tasks, worse on none; missing tasks, seeds or failed runs do not reach it."""
    found = _on_paper_tasks(collection, OURS, TUNED, budget)
    if not found:
        return Result("", "no data", f"no comparison of {OURS} with {TUNED}.")
    better = sum(comparison.verdict == "better" for comparison in found.values())
    worse = sum(comparison.verdict == "worse" for comparison in found.values())
    caveat = _caveat(collection, found, OURS, TUNED)
    return Result(
        "",
        "reached" if better >= _TASKS_BETTER and not worse and not caveat else "not reached",
        f"better on {better}, worse on {worse}, undecided on {len(found) - better - worse} of "
        f"{len(found)} tasks.{caveat}",
        _by_task(found) + _other_tasks(collection, budget),
    )


def _on_paper_tasks(
    collection: Collection, arm: str, baseline: str, budget: Budget
) -> dict[str, Comparison]:
    found = collection.compare(arm, baseline, budget)
    return {task: found[task] for task in PAPER if task in found}


def _other_tasks(collection: Collection, budget: Budget) -> tuple[str, ...]:
    found = collection.compare(OURS, TUNED, budget)
    others = {task: comparison for task, comparison in found.items() if task not in PAPER}
    return tuple(f"not counted: {line}" for line in _by_task(others))


def _by_task(found: dict[str, Comparison]) -> tuple[str, ...]:
    return tuple(f"{task}: {_words(comparison)}" for task, comparison in found.items())


def _words(comparison: Comparison) -> str:
    gain = numbers.percent(comparison.statistics.mean * comparison.percent)
    p = "" if comparison.t_holm is None else f" (p {numbers.equals(comparison.t_holm)})"
    return f"{gain}, {comparison.verdict}{p}, n = {len(comparison.seeds)}"


def _caveat(collection: Collection, found: dict[str, Comparison], *arms: str) -> str:
    """What the claim asks for and the runs do not give; failed runs are in no mean."""
    few = [task for task, comparison in found.items() if len(comparison.seeds) < _SEEDS]
    missing = [task for task in PAPER if task not in found]
    return (
        (f" Fewer than {_SEEDS} common seeds on {', '.join(few)}." if few else "")
        + (f" Nothing to compare on {', '.join(missing)}." if missing else "")
        + _lost(collection, *arms)
    )


def _lost(collection: Collection, *arms: str) -> str:
    lost = {arm: sum(collection.lost(task, arm) for task in PAPER) for arm in arms}
    return "".join(
        f" Runs of {arm} that failed or diverged: {number}."
        for arm, number in lost.items()
        if number
    )


def _equal_to_cosine(collection: Collection) -> Result:
    baseline = _TUNED_COSINE if _TUNED_COSINE in collection.arms else _COSINE
    found = _on_paper_tasks(collection, SCHEDULED, baseline, "whole run")
    others = _by_task(_on_paper_tasks(collection, _REDISTRIBUTED, baseline, "whole run"))
    evidence = _by_task(found) + tuple(f"not counted: {_REDISTRIBUTED}, {x}" for x in others)
    if not found:
        words = f"no common seeds of {SCHEDULED} and {baseline}."
        return Result("", "no data", words, evidence)
    average = fmean(c.statistics.mean * c.percent for c in found.values())
    worse = sum(comparison.verdict == "worse" for comparison in found.values())
    caveat = _caveat(collection, found, SCHEDULED, baseline)
    return Result(
        "",
        "reached" if average >= 0 and not worse and not caveat else "not reached",
        f"{SCHEDULED} on average {numbers.percent(average)} against {baseline}, worse on {worse} "
        f"of {len(found)} tasks.{caveat}",
        evidence,
    )


def _robust(collection: Collection) -> Result:
    found = [result for task in PAPER if (result := robustness(collection, task)) is not None]
    if not found:
        return Result(
            "", "no data", "no task with three learning rates of both arms around AdamW's best."
        )
    missing = [task for task in PAPER if task not in {result.task for result in found}]
    within_half = [r.ratio <= _MOST_OF_ADAMWS_LOSS and not r.lost for r in found]
    reached = not missing and all(within_half) and all(r.whole for r in found)
    every = tuple(
        f"{r.task}: {OURS} loses up to {r.loss:.2f} % (there {numbers.percent(r.gain)} against "
        f"AdamW at its best), AdamW up to {r.adamw_loss:.2f} % over learning rates "
        f"{r.rates[0]:g} … {r.rates[-1]:g}"
        + ("" if r.whole else " (not the whole range)")
        + (f"; runs of {OURS} that failed or diverged: {r.lost}" if r.lost else "")
        + f", n = {r.seeds}"
        for r in found
    )
    lacking = f" No data on {', '.join(missing)}." if missing else ""
    return Result(
        "",
        "reached" if reached else "not reached",
        f"holds on {sum(within_half)} of {len(found)} tasks.{lacking}",
        every,
    )


def _cheap(collection: Collection) -> Result:
    overheads = dict(_overheads(collection))
    if not overheads:
        return Result("", "no data", f"no common seeds of {OURS} and {BASELINE}.")
    equal = _better_than_tuned(collection, "equal compute")
    missing = [task for task in PAPER if task not in overheads]
    cheap = not missing and all(overhead <= _MOST_OVERHEAD for overhead in overheads.values())
    found = _on_paper_tasks(collection, OURS, TUNED, "equal compute")
    every = tuple(
        f"{task}: {numbers.percent(100 * overhead)} a step"
        + (f"; at equal wall-clock {_words(found[task])}" if task in found else "")
        for task, overhead in overheads.items()
    )
    least, most = (numbers.percent(100 * f(overheads.values())) for f in (min, max))
    return Result(
        "",
        "reached" if cheap and equal.verdict == "reached" else "not reached",
        f"from {least} to {most} a step; at equal wall-clock {equal.detail}"
        + (f" No times on {', '.join(missing)}." if missing else ""),
        every,
    )


def _overheads(collection: Collection) -> Iterator[tuple[str, float]]:
    """Seconds per step beyond AdamW's, as a share of AdamW's; passes take as long in both."""
    for task in PAPER:
        mine = {run.seed: run for run in collection.of(task, OURS) if run.steps}
        theirs = {run.seed: run for run in collection.of(task, BASELINE) if run.steps}
        seeds = sorted(mine.keys() & theirs.keys())
        if seeds:
            ours, base = (
                fmean(runs[seed].compute / runs[seed].steps for seed in seeds)
                for runs in (mine, theirs)
            )
            yield task, ours / base - 1


def _beyond_the_paper(collection: Collection) -> Result:
    gains, words = [], []
    for task, paper in PAPER.items():
        runs = collection.of(task, OURS)
        if runs:
            sign = 1 if runs[0].direction == "maximize" else -1
            best = [run.best_metric for run in runs]
            gains.append(100 * sign * (fmean(best) - paper.metaadamw) / paper.metaadamw)
            words.append(
                f"{task}: {numbers.spread(best)} against {numbers.metric(paper.metaadamw)}, "
                f"{numbers.percent(gains[-1])}, n = {len(runs)}"
            )
    if not gains:
        return Result("", "no data", f"no runs of {OURS}.")
    lost = _lost(collection, OURS)
    return Result(
        "",
        "reached" if min(gains) > 0 and not lost else "not reached",
        f"beyond on {sum(gain > 0 for gain in gains)} of {len(gains)} tasks.{lost}",
        tuple(words),
    )
