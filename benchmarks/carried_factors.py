"""What the groups of a model are worth to each other, carried from task to task.

Where windows end, groups of the same kind have found much the same place relative to the others,
whatever the task. Half of that, on the log scale, is where their factors may start on another one:

    python -m benchmarks.carried_factors

reads the runs of metaadamw-slow-mean in results/, packed or not, and writes the table that the
package ships and, for each task, the one that its own runs have no part in: what the bench compares
with.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from metaadamw.modulators.carried import TABLES
from metaadamw_bench.run_directory import MODULATION
from metaadamw_bench.run_files import RunFiles
from metaadamw_bench.stored_runs import find_runs

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "results"
ARM = "metaadamw-slow-mean"
TASKS = ("etth1", "wikitext2", "multi30k", "cifar10", "imdb")
SEEDS = range(5)
SHARE = 0.5
"""A start is where less is known than at the end: half of the way, on the log scale."""

Places = dict[str, float]


@cache
def runs() -> dict[str, RunFiles]:
    """All runs, by their places in there."""
    return {run.path: run.files for run in find_runs([RUNS])}


def run_of(task: str, seed: int) -> RunFiles:
    """A run of the arm."""
    return runs()[f"{RUNS.name}/small/clean-small/{task}/{ARM}/seed{seed}"]


def end_of(run: RunFiles) -> Places:
    """log α of each group after the last step, relative to the mean over the groups."""
    last = list(csv.DictReader(io.StringIO(run.read_text(MODULATION), newline="")))[-1]
    suffix = "/alpha"
    logs = {k.removesuffix(suffix): math.log(float(v)) for k, v in last.items() if suffix in k}
    mean = fmean(logs.values())
    return {name: value - mean for name, value in logs.items()}


def mean_of(places: Iterable[Places]) -> Places:
    """The mean of each group over those that have it."""
    found = defaultdict(list)
    for place in places:
        for name, value in place.items():
            found[name].append(value)
    return {name: fmean(values) for name, values in found.items()}


def table(tasks: Collection[Places]) -> Places:
    """α at birth by name of a group; a depth that no task had gets the mean of its kind.

    A kind that a single task had is left away: what it says may be about that task.
    """

    def kind(name: str) -> tuple[str, str]:
        layer, _, role = name.split(".")
        return layer, role

    def by_kind(place: Places) -> Places:
        kinds = dict.fromkeys(map(kind, place))
        return {
            f"{layer}.{depth}.{role}": fmean(
                v for n, v in place.items() if kind(n) == (layer, role)
            )
            for layer, role in kinds
            for depth in ("shallow", "middle", "deep")
        }

    places = mean_of(map(by_kind, tasks)) | mean_of(tasks)
    tasks_with = Counter(name for place in tasks for name in by_kind(place))
    return {
        name: round(math.exp(SHARE * places[name]), 3)
        for name in sorted(places)
        if tasks_with[name] > 1
    }


def tables() -> dict[str, Any]:
    """Of all tasks together, and for each task of the others."""
    ends = {t: mean_of(end_of(run_of(t, s)) for s in SEEDS) for t in TASKS}
    return {
        "all": table(ends.values()),
        "without": {t: table([end for o, end in ends.items() if o != t]) for t in TASKS},
    }


if __name__ == "__main__":
    TABLES.write_text(json.dumps(tables(), indent=1) + "\n")
