"""Table 3: what changes when one part of an arm is changed."""

from __future__ import annotations

from metaadamw_bench.ablations import ABLATIONS
from metaadamw_bench.report import numbers
from metaadamw_bench.report.collection import BASELINE, Collection
from metaadamw_bench.report.comparison import Comparison
from metaadamw_bench.report.document import Table, Text
from metaadamw_bench.report.paper import PAPER, PAPER_ARMS, TABLE3
from metaadamw_bench.report.tables import commands

__all__ = ["table3"]

_OTHER = "Other"


def _section(name: str) -> str:
    """The section of Table 3 that an ablation belongs to."""
    return ABLATIONS[name].section if name in ABLATIONS else _OTHER


def _title(name: str) -> str:
    return f"{name}: {ABLATIONS[name].configuration}" if name in ABLATIONS else name


def table3(collection: Collection, arm: str) -> Table | None:
    """The ablations of one arm; None if there are none."""
    own = [r for r in collection.runs if r.cell.arm == arm and not r.is_rate_variant]
    present = {run.cell.ablation for run in own if run.cell.ablation}
    ablations = [*(a for a in ABLATIONS if a in present), *sorted(present - ABLATIONS.keys())]
    if not ablations:
        return None
    tasks = [t for t in collection.tasks if any(collection.of(t, arm, a) for a in ablations)]
    header = ["configuration"]
    for task in tasks:
        header += [f"{task}", "change", "paper"]

    rows: list[list[str | Text]] = [
        [arm, *_cells(collection, tasks, arm)],
        [BASELINE, *_cells(collection, tasks, BASELINE, against=arm)],
    ]
    for title in dict.fromkeys(map(_section, ablations)):
        rows.append([Text(title, "heading")] + [""] * (len(header) - 1))
        for name in ablations:
            if _section(name) == title:
                cells = _cells(collection, tasks, arm, name, against=arm)
                rows.append([_title(name), *cells])
    return Table(
        title=f"{arm}, one thing changed",
        header=header,
        rows=rows,
        note=(
            f"Metric, mean ± standard deviation (number of seeds); the change against {arm} over "
            "common seeds in percent, negative is worse, as in the paper; coloured where the "
            "paired t-test says so after Holm's correction over tasks. Each configuration is one "
            "setting of the arm changed. The paper's column: its value for the same change, from "
            "its own tuned configuration, one seed, full size; empty beside arms that are not the "
            "paper's."
        ),
        commands=commands(
            collection, [*own, *(run for run in collection.plain if run.cell.arm == BASELINE)]
        ),
        paper_columns=frozenset(range(3, len(header), 3)),
    )


def _cells(
    collection: Collection,
    tasks: list[str],
    arm: str,
    ablation: str | None = None,
    against: str | None = None,
) -> list[str | Text]:
    cells: list[str | Text] = []
    for task in tasks:
        runs, lost = collection.of(task, arm, ablation), collection.lost(task, arm, ablation)
        on_test = all(run.test_metric is not None for run in runs)
        values = [run.test_metric if on_test else run.best_metric for run in runs]
        value = numbers.spread(v for v in values if v is not None)
        count = f" ({len(runs)}{f', +{lost} failed' if lost else ''})" if runs or lost else ""
        found = None
        if against is not None:
            found = collection.compare(arm, against, "whole run", ablation).get(task)
        cells += [value + count, _change(found), _paper(task, arm, ablation)]
    return cells


def _change(found: Comparison | None) -> Text:
    if found is None:
        return Text("")
    percent = numbers.percent(found.statistics.mean * found.percent)
    return Text(percent, "plain" if found.verdict == "undecided" else found.verdict)


def _paper(task: str, arm: str, ablation: str | None) -> str:
    if task not in PAPER or arm not in PAPER_ARMS:
        return ""
    if ablation is None:
        adamw = PAPER_ARMS[arm] == "adamw"
        return numbers.metric(PAPER[task].adamw if adamw else PAPER[task].metaadamw)
    known = ABLATIONS.get(ablation)
    row = (known.section, known.configuration) if known else ("", "")
    value = TABLE3.get(row, {}).get(task)
    return "" if value is None else numbers.metric(value)
