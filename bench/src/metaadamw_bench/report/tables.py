"""Tables 2 and 5 and the paired differences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import fmean

from metaadamw_bench.report import numbers
from metaadamw_bench.report.collection import BASELINE, Collection, task_order
from metaadamw_bench.report.commands import report_command, run_commands
from metaadamw_bench.report.comparison import BUDGETS, Comparison
from metaadamw_bench.report.document import Table, Text
from metaadamw_bench.report.paper import PAPER, PAPER_ARMS
from metaadamw_bench.report.runs import FinishedRun

__all__ = ["commands", "fidelity", "gains", "overview", "table2", "table5"]

Row = list[str | Text]

# The arms of the paper's tables have a row even where there is no run.
_ALWAYS = ("metaadamw-paper", BASELINE)


def commands(collection: Collection, runs: Sequence[FinishedRun]) -> list[str]:
    """What makes these runs and this report again."""
    return [*run_commands(runs), report_command(collection.roots)]


def _rows(
    collection: Collection, columns: int, row: Callable[[str, str], Row]
) -> Iterator[Sequence[str | Text]]:
    """A heading a task, a row an arm; an arm without runs has a row where the paper has one."""
    for task in sorted({*collection.tasks, *PAPER}, key=task_order):
        arms = [
            arm
            for arm in dict.fromkeys([*collection.arms, *_ALWAYS])
            if collection.of(task, arm)
            or collection.lost(task, arm)
            or (task in PAPER and arm in _ALWAYS)
        ]
        runs = [run for run in collection.plain if run.cell.task == task]
        unit = runs[0].metric_name if runs else PAPER[task].metric if task in PAPER else ""
        if arms:
            yield [Text(f"{task}: {unit}", "heading")] + [""] * (columns - 1)
        for arm in arms:
            yield row(task, arm)


def _count(collection: Collection, task: str, arm: str, ablation: str | None = None) -> Text:
    runs, lost = collection.of(task, arm, ablation), collection.lost(task, arm, ablation)
    words = str(len(runs)) if runs else ""
    return Text(f"{len(runs)}\n{lost} failed", "worse") if lost else Text(words)


def _gain(comparison: Comparison | None) -> Text:
    """Gain in percent, toned by the verdict."""
    if comparison is None:
        return Text("")
    return Text(
        numbers.percent(comparison.statistics.mean * comparison.percent),
        "plain" if comparison.verdict == "undecided" else comparison.verdict,
    )


def table2(collection: Collection) -> Table:
    """Best metric and total time of every arm, beside the paper's."""
    header = [
        "task, arm",
        "n",
        "best validation",
        "paper",
        "test",
        "gain on AdamW",
        "paper",
        "at equal steps",
        "at equal compute",
        "time, s",
        "time against AdamW",
        "paper",
    ]

    def row(task: str, arm: str) -> Row:
        runs = collection.of(task, arm)
        whole, steps, compute = (
            _gain(None if arm == BASELINE else collection.compare(arm, BASELINE, budget).get(task))
            for budget in BUDGETS
        )
        paper_value, paper_gain, paper_time = _paper(task, arm)
        return [
            arm,
            _count(collection, task, arm),
            numbers.spread(run.best_metric for run in runs),
            paper_value,
            numbers.spread(run.test_metric for run in runs if run.test_metric is not None),
            whole,
            paper_gain,
            steps,
            compute,
            numbers.seconds(run.compute for run in runs),
            "" if arm == BASELINE else _overhead(collection, task, arm),
            paper_time,
        ]

    return Table(
        title="",
        header=header,
        rows=list(_rows(collection, len(header), row)),
        note=(
            "Mean ± standard deviation over n seeds. Gains are paired over common seeds, in "
            "percent of AdamW's mean, positive is better whichever way the metric points; on the "
            "test part where there is one. At equal steps and equal compute: what AdamW's run of "
            "the same seed took, on the validation part; empty where that ends before the first "
            "evaluation in any seed. Coloured: paired t-test, Holm-corrected over tasks, "
            "p < 0.05. Time: training and meta-updates until early stopping. The "
            "columns named paper hold the paper's numbers: one seed, full size, paper protocol, "
            "its authors' machine."
        ),
        commands=commands(collection, collection.plain),
        paper_columns=frozenset({3, 6, 11}),
    )


def _overhead(collection: Collection, task: str, arm: str) -> str:
    """Total train + meta time against AdamW's over common seeds."""
    ratio = _ratio(collection, task, arm, lambda run: run.compute)
    return "" if ratio is None else numbers.percent(100 * (ratio - 1))


def _ratio(
    collection: Collection, task: str, arm: str, measure: Callable[[FinishedRun], float]
) -> float | None:
    """Mean of a measure over AdamW's, over common seeds."""
    mine = {run.seed: run for run in collection.of(task, arm)}
    theirs = {run.seed: run for run in collection.of(task, BASELINE)}
    seeds = sorted(mine.keys() & theirs.keys())
    below = fmean(measure(theirs[seed]) for seed in seeds) if seeds else 0.0
    return fmean(measure(mine[seed]) for seed in seeds) / below if below else None


def _paper(task: str, arm: str) -> list[str]:
    if task not in PAPER or arm not in PAPER_ARMS:
        return ["", "", ""]
    paper = PAPER[task]
    if PAPER_ARMS[arm] == "adamw":
        return [numbers.metric(paper.adamw), "", ""]
    sign = 1 if "accuracy" in paper.metric else -1
    return [
        numbers.metric(paper.metaadamw),
        numbers.percent(100 * sign * (paper.metaadamw - paper.adamw) / paper.adamw),
        numbers.percent(100 * (paper.metaadamw_seconds / paper.adamw_seconds - 1)),
    ]


def table5(collection: Collection) -> Table:
    """Time per epoch and in total, and where it goes."""
    header = [
        "task, arm",
        "n",
        "epoch, s",
        "per step against AdamW",
        "meta share",
        "epochs",
        "total, s",
        "of it evaluation",
        "paper: epoch, s",
        "paper: total, s",
        "paper: overhead",
    ]

    def row(task: str, arm: str) -> Row:
        runs = [run for run in collection.of(task, arm) if run.steps]
        per_step = _ratio(collection, task, arm, lambda run: run.compute / max(run.steps, 1))
        return [
            arm,
            _count(collection, task, arm),
            numbers.seconds(run.compute / run.steps * run.steps_per_epoch for run in runs),
            "" if per_step is None or arm == BASELINE else numbers.percent(100 * (per_step - 1)),
            _share(runs, "meta"),
            numbers.epochs(run.epochs for run in runs),
            numbers.seconds(run.total for run in runs),
            _share(runs, "evaluation"),
            *_paper_times(task, arm),
        ]

    environments = sorted({run.environment for run in collection.plain})
    return Table(
        title="",
        header=header,
        rows=list(_rows(collection, len(header), row)),
        note=(
            "Mean ± standard deviation over n seeds. Epoch: training and meta-updates of one pass "
            "over the training part. Total, of which the shares are: training, meta-updates, "
            "evaluation and logging, by the same clock; what a run does between them is not "
            "counted. "
            + (
                "Measured on "
                if len(environments) == 1
                else "NOT ONE MACHINE, so compare with care, converted as they are: "
            )
            + "; ".join(environments)
            + "."
        ),
        commands=commands(collection, collection.plain),
        paper_columns=frozenset({8, 9, 10}),
    )


def _share(runs: Sequence[FinishedRun], name: str) -> str:
    total = sum(run.total for run in runs)
    return f"{100 * sum(run.seconds[name] for run in runs) / total:.1f} %" if total else ""


def _paper_times(task: str, arm: str) -> list[str]:
    if task not in PAPER or arm not in PAPER_ARMS:
        return ["", "", ""]
    paper = PAPER[task]
    if PAPER_ARMS[arm] == "adamw":
        return [f"{paper.adamw_epoch_seconds:.2f}", f"{paper.adamw_seconds:.0f}", ""]
    return [
        f"{paper.metaadamw_epoch_seconds:.2f}",
        f"{paper.metaadamw_seconds:.0f}",
        numbers.percent(100 * (paper.metaadamw_seconds / paper.adamw_seconds - 1)),
    ]


def overview(collection: Collection, arm: str) -> Table:
    """One arm against every baseline, a column a task."""
    compared = {b: collection.compare(arm, b, "whole run") for b in collection.baselines(arm)}
    tasks = [task for task in collection.tasks if any(task in found for found in compared.values())]
    rows: list[Row] = []
    for baseline, found in compared.items():
        if found:
            rows.append([baseline, *(_verdict(found.get(task)) for task in tasks)])
    runs = [run for run in collection.plain if run.cell.arm in (arm, *compared)]
    return Table(
        title=f"{arm} against each baseline",
        header=["against", *tasks],
        rows=rows,
        note=(
            "Paired gain in percent of the baseline's mean [95 % bootstrap interval], p of the "
            "paired t-test after Holm's correction over tasks, number of common seeds."
        ),
        commands=commands(collection, runs),
    )


def _verdict(comparison: Comparison | None) -> Text:
    if comparison is None:
        return Text("")
    gain = _gain(comparison)
    lines = [gain.text]
    if comparison.statistics.interval is not None:
        lines.append(f"[{_interval(comparison)}]")
    p = "" if comparison.t_holm is None else f"p {numbers.equals(comparison.t_holm)}, "
    return Text("\n".join([*lines, f"{p}n = {len(comparison.seeds)}"]), gain.tone)


def _interval(comparison: Comparison) -> str:
    if comparison.statistics.interval is None:
        return ""
    return " … ".join(
        numbers.percent(bound * comparison.percent).removesuffix(" %")
        for bound in comparison.statistics.interval
    )


def gains(collection: Collection, arm: str) -> Table:
    """Every paired difference of one arm with all its statistics."""
    header = [
        "task, baseline",
        "given",
        "on",
        "n",
        "arm",
        "baseline",
        "gain",
        "gain, %",
        "95 % interval, %",
        "t",
        "t, Holm",
        "Wilcoxon",
        "Wilcoxon, Holm",
        "verdict",
    ]
    rows: list[Row] = []
    for task in collection.tasks:
        start = len(rows)
        for baseline in collection.baselines(arm):
            for budget in BUDGETS:
                found = collection.compare(arm, baseline, budget).get(task)
                if found is not None:
                    rows.append(_gain_row(found))
        if len(rows) > start:
            rows.insert(start, [Text(task, "heading")] + [""] * (len(header) - 1))
    runs = [r for r in collection.plain if r.cell.arm in (arm, *collection.baselines(arm))]
    return Table(
        title=f"{arm}: paired differences in full",
        header=header,
        rows=rows,
        note=(
            "Gain: mean over common seeds of the difference, positive is better. Two-sided p of "
            "the paired t-test and of Wilcoxon's signed-rank test, plain and after Holm's "
            "correction over tasks; Wilcoxon's cannot fall below 0.0625 with 5 seeds. Verdict: "
            "corrected t-test, p < 0.05."
        ),
        commands=commands(collection, runs),
    )


def _gain_row(comparison: Comparison) -> Row:
    statistics = comparison.statistics
    return [
        comparison.baseline,
        comparison.budget,
        comparison.measured_on,
        str(len(comparison.seeds)),
        numbers.spread(comparison.values),
        numbers.spread(comparison.baseline_values),
        numbers.spread(comparison.gains),
        _gain(comparison),
        _interval(comparison),
        numbers.p_value(statistics.t),
        numbers.p_value(comparison.t_holm),
        numbers.p_value(statistics.wilcoxon),
        numbers.p_value(comparison.wilcoxon_holm),
        Text(
            comparison.verdict,
            "muted" if comparison.verdict == "undecided" else comparison.verdict,
        ),
    ]


def fidelity(collection: Collection) -> Table | None:
    """AdamW's validation curve against the one the paper's authors published.

    Runs that were asked for fewer epochs have no best: theirs is that of a whole run.
    """
    cut = collection.setting.max_steps is not None or collection.setting.epochs is not None
    header = ["task, after", "n", "ours", "our range", "paper's authors", "within our range"]
    rows: list[Row] = []
    for task, paper in PAPER.items():
        runs = collection.of(task, BASELINE)
        if not runs:
            continue
        own: list[Row] = []
        for when, theirs in zip(("epoch 1", "epoch 5", "best"), paper.curve, strict=True):
            ours = [value for run in runs if (value := _after(run, when)) is not None]
            if cut and (when == "best" or not ours):
                continue
            row: Row = [when, str(len(ours) or "")]
            row += [numbers.spread(ours), "", numbers.metric(theirs), ""]
            if ours:
                row[3] = f"{numbers.metric(min(ours))} … {numbers.metric(max(ours))}"
                row[5] = "yes" if min(ours) <= theirs <= max(ours) else "no"
            own.append(row)
        if own:
            rows.append([Text(f"{task}: {paper.metric}", "heading")] + [""] * (len(header) - 1))
            rows += own
    if not rows:
        return None
    return Table(
        title="",
        header=header,
        rows=rows,
        note="Validation metric. Theirs is one seed (42).",
        commands=commands(collection, [r for r in collection.plain if r.cell.arm == BASELINE]),
        paper_columns=frozenset({4}),
    )


def _after(run: FinishedRun, when: str) -> float | None:
    if when == "best":
        return run.best_metric
    # By its step: a run that was cut evaluates an epoch that it has not finished.
    step = int(when.removeprefix("epoch ")) * run.steps_per_epoch
    return next((e.metric for e in run.evaluations if e.step == step), None)
