"""The report from its first line to its last: which section shows what."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from metaadamw_bench.report.ablations import table3
from metaadamw_bench.report.claims import claims
from metaadamw_bench.report.collection import FAMILY, Collection
from metaadamw_bench.report.curves import CURVES, curves
from metaadamw_bench.report.document import Block, Details, Section, Table, Words
from metaadamw_bench.report.forest import FOREST, forest
from metaadamw_bench.report.heatmaps import HEAT_MAPS, heat_map
from metaadamw_bench.report.robustness import rates_table
from metaadamw_bench.report.runs import LeftOut
from metaadamw_bench.report.steps import Steps
from metaadamw_bench.report.tables import fidelity, gains, overview, table2, table5

__all__ = ["TITLE", "count_steps", "outline"]

TITLE = "MetaAdamW against its baselines"

_METHOD = (
    "Every number on this page is computed from run directories; a cell without runs is empty. "
    "The runs of a row differ in their seed alone, tuned and matched arms also in what they found; "
    "runs with other settings are left out and listed at the end. "
    "The paper's numbers stand in columns of their own and are labelled so.",
    "Runs are paired by seed: the same seed means the same initial weights, the same batches and "
    "the same dropout. Gains are differences signed so that positive is better. Whole runs are "
    "compared on the test part where both arms have one (read once, at the best validation "
    "epoch), otherwise by their best validation metric. At equal steps and at equal compute, the "
    "arm gets what the baseline's run of the same seed took, and both are read off the best "
    "validation metric so far, interpolated between evaluations; where the budget of a seed ends "
    "before the first evaluation, that task has no such comparison. A run that stopped early "
    "keeps its best.",
    "Compute is the time of training and meta-updates, spread evenly over the steps of a run: "
    "processor time on a CPU, where other runs beside it must not count, and wall time on an "
    "accelerator. The forward and backward passes of a step are the same for every arm of a task; "
    "all seconds are converted to a machine on which they take as long as in the middle one of "
    "AdamW's runs, so that a slow day is no slow optimizer. That it slows both alike is an "
    "assumption, good to a percentage point or two. Evaluation, logging and the search "
    "that tuned a baseline are not in it. AdamW is torch.optim.AdamW as it is by default, on a CPU "
    "neither fused nor foreach; docs/performance.md measures against fused AdamW, which is faster.",
    "Intervals: 95 %, bias-corrected and accelerated bootstrap of the mean paired difference, "
    "9,999 resamples, fixed generator; with five seeds such intervals are known to be too narrow. "
    "Tests: two-sided paired t-test and Wilcoxon signed-rank test; Holm's correction over the "
    "tasks on which two arms are compared. What is called better or worse is the t-test's "
    "verdict after correction at 0.05; fewer than five common seeds decide nothing. Runs that "
    "failed or diverged are in no mean; they are "
    "counted in red beside n and listed at the end.",
)


def count_steps(collections: Sequence[Collection]) -> int:
    """How many steps ``outline`` begins: the claims, tables, and pictures one by one."""
    return 1 + sum(
        5 + len(c.contenders) + len(c.tasks) + len(_with_factors(c)) for c in collections
    )


def outline(
    collections: Sequence[Collection], left_out: Sequence[LeftOut], steps: Steps
) -> list[Section]:
    """All sections, in reading order."""
    steps.begin("claims")
    sections = [_claims(collections, left_out)]
    for collection in collections:
        sections += _setting(collection, steps)
    sections.append(
        Section(
            title="How the numbers are made",
            anchor="method",
            level=2,
            blocks=[Words(text) for text in _METHOD],
        )
    )
    if left_out:
        sections.append(_left_out(left_out))
    return sections


def _claims(collections: Sequence[Collection], left_out: Sequence[LeftOut]) -> Section:
    runs = [run for collection in collections for run in collection.runs]
    blocks: list[Block] = [
        Words(
            f"{len(runs)} finished runs: {len({run.cell.task for run in runs})} tasks, "
            f"{len({run.cell.arm for run in runs})} arms, "
            f"{len({run.seed for run in runs})} seeds"
            + (
                f"; {len(left_out)} run directories are left out, see the end."
                if left_out
                else "; nothing was left out."
            )
        ),
        Words(
            "What this project set out to show, and what these runs say about it. A claim counts "
            "as reached only with all the tasks and seeds it names."
        ),
    ]
    blocks += claims(collections)
    return Section(title="Claims", anchor="claims", level=2, blocks=blocks)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _setting(collection: Collection, steps: Steps) -> Iterator[Section]:
    slug = collection.setting.slug

    def begin(what: str) -> None:
        steps.begin(f"{collection.setting.title}: {what}")

    seeds = sorted({run.seed for run in collection.runs})
    yield Section(
        title=_capital(collection.setting.title),
        anchor=slug,
        level=2,
        blocks=[
            Words(
                f"{len(collection.runs)} runs; tasks: {', '.join(collection.tasks)}; arms: "
                f"{', '.join(collection.arms)}; seeds: {', '.join(map(str, seeds))}."
            )
        ],
    )
    parts: list[tuple[str, str, Callable[[], Iterable[Block]]]] = [
        ("Table 2: best metric and time", "table2", lambda: [table2(collection)]),
        ("Paired differences", "paired", lambda: _paired(collection, begin)),
        ("Figures: validation curves", "curves", lambda: _curves(collection, begin)),
        ("Table 3: ablations", "table3", lambda: _ablations(collection)),
        ("Learning rates", "rates", lambda: _rates(collection)),
        ("Table 5: time per epoch and in total", "table5", lambda: [table5(collection)]),
        ("α and β over time", "modulation", lambda: _heat_maps(collection, begin)),
        ("Fidelity: AdamW against the authors' curves", "fidelity", lambda: _fidelity(collection)),
    ]
    for title, anchor, make in parts:
        if anchor not in _ONE_BY_ONE:
            begin(title)
        if blocks := list(make()):
            yield Section(title=title, anchor=f"{slug}-{anchor}", level=3, blocks=blocks)


# Whose pictures are steps of their own.
_ONE_BY_ONE = ("paired", "curves", "modulation")

_Begin = Callable[[str], None]


def _paired(collection: Collection, begin: _Begin) -> Iterator[Block]:
    if collection.contenders:
        yield Words(FOREST)
    for arm in collection.contenders:
        begin(f"paired differences, {arm}")
        picture = forest(collection, arm)
        if picture is not None:
            yield overview(collection, arm)
            yield picture
            yield Details(
                summary=f"{arm}: every difference, interval and test",
                blocks=[gains(collection, arm)],
            )


def _curves(collection: Collection, begin: _Begin) -> Iterator[Block]:
    yield Words(CURVES)
    for task in collection.tasks:
        begin(f"curves, {task}")
        found = curves(collection, task)
        if found is not None:
            yield found


def _ablations(collection: Collection) -> Iterator[Block]:
    for arm in sorted({run.cell.arm for run in collection.runs if run.cell.ablation}):
        found = table3(collection, arm)
        if found is not None:
            yield found


def _rates(collection: Collection) -> Iterator[Block]:
    for task in collection.tasks:
        found = rates_table(collection, task)
        if found is not None:
            yield found


def _with_factors(collection: Collection) -> list[str]:
    """The arms whose factors are shown; a replay has those of the run it replays."""
    return [arm for arm in collection.arms if arm.startswith(FAMILY)]


def _heat_maps(collection: Collection, begin: _Begin) -> Iterator[Block]:
    found = []
    for arm in _with_factors(collection):
        begin(f"α and β, {arm}")
        if (picture := heat_map(collection, arm)) is not None:
            found.append(picture)
    if found:
        yield Words(HEAT_MAPS)
        yield from found


def _fidelity(collection: Collection) -> Iterator[Block]:
    is_original = collection.setting[:2] == ("paper", "full")
    if is_original and (found := fidelity(collection)) is not None:
        yield found


def _left_out(left_out: Sequence[LeftOut]) -> Section:
    return Section(
        title="Run directories left out",
        anchor="left-out",
        level=2,
        blocks=[
            Table(
                title=f"{len(left_out)} run directories take no part in the numbers above",
                header=["directory", "reason"],
                rows=[[entry.path, entry.reason] for entry in left_out],
            )
        ],
    )
