"""Reads run directories; one that is unfinished, broken or failed is named and left out."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metaadamw_bench.places import RATE as SWEPT_RATE
from metaadamw_bench.places import shown
from metaadamw_bench.printable import is_text
from metaadamw_bench.report.asked import Asked, asked
from metaadamw_bench.report.json_fields import (
    Unusable,
    get,
    number,
    optional_number,
    read_object,
)
from metaadamw_bench.report.likeness import (
    Settings,
    difference,
    learning_rate,
    only_the_rate_differs,
    settings_of,
    usual_settings,
)
from metaadamw_bench.report.setting import Cell, Setting
from metaadamw_bench.report.steps import Tell, quiet
from metaadamw_bench.run_files import RunFiles
from metaadamw_bench.stored_runs import StoredRun, find_runs

__all__ = [
    "RATE",
    "Evaluation",
    "FinishedRun",
    "LeftOut",
    "Modulation",
    "read_runs",
]

Direction = Literal["minimize", "maximize"]
# What the ablation of a run with another learning rate than its arm's is called.
RATE = "lr="

_TUNING = "tuning"
_RATE_VARIANT = re.compile(rf"{re.escape(SWEPT_RATE)}[0-9.e+-]+")


class Evaluation(NamedTuple):
    """One evaluation on the validation part.

    Attributes:
        step: training steps taken before it.
        seconds: training and meta-updates before it.
        loss: validation loss.
        metric: validation metric.
    """

    step: int
    seconds: float
    loss: float
    metric: float


class Modulation(NamedTuple):
    """What MetaAdamW did to each group: steps [S], group names, α and β [S, G]."""

    steps: NDArray[np.float64]
    groups: tuple[str, ...]
    alpha: NDArray[np.float64]
    beta: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A run that came to its end with finite numbers; most names are those of its summary.

    Attributes:
        path: its directory below the root it was found in.
        shown_directory: its directory as a command names it.
        sweep: the directory of the sweep that places it where it is; None if none does.
        settings: what the runs of its cell agree on.
        asked: what its command has to say besides task, arm, seed and length.
        rate: its learning rate, before an arm's own factor.
    """

    path: str
    cell: Cell
    seed: int
    key: str
    shown_directory: str
    sweep: str | None
    settings: Settings = field(repr=False)
    asked: Asked
    rate: float
    weight_decay: float
    metric_name: str
    direction: Direction
    best_metric: float
    test_metric: float | None
    epochs: float
    steps: int
    steps_per_epoch: int
    stopped_early: bool
    parameters: int | None
    seconds: dict[str, float]
    environment: str
    evaluations: tuple[Evaluation, ...]
    modulation: Modulation | None = field(repr=False)

    @property
    def is_rate_variant(self) -> bool:
        """Whether it differs from the other runs of its arm in its learning rate."""
        return (self.cell.ablation or "").startswith((RATE, SWEPT_RATE))

    @property
    def compute(self) -> float:
        """Seconds of training and meta-updates: no evaluation, no logging."""
        return self.seconds["train"] + self.seconds["meta"]

    @property
    def total(self) -> float:
        """All that the run spent its seconds on, by the clock that measures the parts."""
        return sum(self.seconds[name] for name in _PARTS)

    @property
    def optimization(self) -> float:
        """The part of ``compute`` that the optimizer takes for itself."""
        return self.seconds["optimizer_step"] + self.seconds["meta"]


_PARTS = ("train", "meta", "evaluation", "logging")
# The summary's own total is wall time, and on a CPU its parts are not.
_SECONDS = (*_PARTS, "optimizer_step")


class LeftOut(NamedTuple):
    """A run directory that takes no part in the report.

    ``cell`` and ``settings`` are given where the run itself failed or diverged, so that tables can
    say so.
    """

    path: str
    reason: str
    cell: Cell | None = None
    settings: Settings = MappingProxyType({})


def read_runs(roots: Sequence[Path], tell: Tell = quiet) -> tuple[list[FinishedRun], list[LeftOut]]:
    """Read all runs at and below the given directories, and in packed files.

    Args:
        roots: the directories.
        tell: is told how far it is.

    Returns:
        The finished runs, sorted by setting, task, arm, ablation and seed; and what was left out.

    Raises:
        ValueError: a root is neither a directory nor a packed file, a packed file is damaged, or
            there is no run at all.
    """
    read: list[FinishedRun] = []
    left_out: list[LeftOut] = []
    found = [stored for stored in find_runs(roots) if stored.files.path.parent.name != _TUNING]
    for index, stored in enumerate(found):  # the runs that tune an arm are none of the comparison
        tell("reading runs", index, len(found))
        try:
            read.append(_read(stored))
        except Unusable as problem:
            left_out.append(LeftOut(stored.path, str(problem), problem.cell, problem.settings))
    read = list(_with_rate_variants(read))
    usual = usual_settings(read)
    left_out = [_of_its_cell(entry, usual) for entry in left_out]
    finished: dict[tuple[Cell, int], FinishedRun] = {}
    # Where a sweep would put a run, it goes first.
    for run in sorted(read, key=lambda run: run.sweep is None):
        unlike = difference(run.settings, usual[run.cell])
        if unlike:
            left_out.append(LeftOut(run.path, unlike))
            continue
        other = finished.setdefault((run.cell, run.seed), run)
        if other is not run:
            same = "the same run as" if other.key == run.key else "other settings than"
            reason = f"{same} {other.path}, which has this task, arm and seed"
            left_out.append(LeftOut(run.path, reason))
    if not finished and not left_out:
        raise ValueError(f"no run directory in {', '.join(str(root) for root in roots)}")
    return sorted(finished.values(), key=_order), sorted(left_out, key=lambda entry: entry.path)


def _with_rate_variants(runs: Sequence[FinishedRun]) -> Iterator[FinishedRun]:
    """Give runs with another learning rate than the sweep's of the same arm a cell of their own."""
    swept = usual_settings(run for run in runs if run.sweep is not None)
    for run in runs:
        usual = swept.get(run.cell, run.settings)
        own = run.cell.ablation is None and run.sweep is None
        if own and only_the_rate_differs(run.settings, usual):
            yield replace(run, cell=run.cell._replace(ablation=f"{RATE}{run.rate:g}"))
        else:
            yield run


def _of_its_cell(entry: LeftOut, usual: Mapping[Cell, Settings]) -> LeftOut:
    """A run that failed with other settings is no failure of the cell."""
    if entry.cell is None or entry.cell not in usual:
        return entry
    unlike = difference(entry.settings, usual[entry.cell])
    return LeftOut(entry.path, f"{entry.reason}; {unlike}") if unlike else entry


def _order(run: FinishedRun) -> tuple[Any, ...]:
    setting = run.cell.setting
    cut = math.inf if setting.max_steps is None else setting.max_steps
    return (
        *setting[:2],
        setting.epochs or 0,
        cut,
        run.cell.task,
        run.cell.arm,
        run.cell.ablation or "",
        run.seed,
    )


def _read(stored: StoredRun) -> FinishedRun:
    files, directory = stored.files, stored.files.path
    config = {"arm_settings": {}, **read_object(files, "config.json")}
    get(config, "arm_settings", dict)
    number(config, "lr")
    try:
        setting = Setting.of(config)
    except ValueError as error:
        raise Unusable(f"config.json: {error}") from None
    arm = get(config, "arm", str)
    variant = directory.parent.name.removeprefix(f"{arm}+")
    ablation = variant if _RATE_VARIANT.fullmatch(variant) else config.get("ablation")
    if not isinstance(ablation, str | None) or not is_text(ablation or ""):
        raise Unusable(f"config.json: ablation is {ablation!r}")
    cell = Cell(setting, get(config, "task", str), arm, ablation)
    weight_decay = number(config, "weight_decay")
    try:
        rate, settings, words = learning_rate(config), settings_of(config), asked(config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Unusable(f"config.json: {type(error).__name__}: {error}") from None
    summary = read_object(files, "summary.json")
    for name in ("task", "arm", "seed", "protocol", "size"):
        if summary.get(name) != config.get(name):
            raise Unusable(f"summary.json and config.json disagree about {name}")
    if summary.get("status") != "finished":
        raise Unusable(f"failed: {summary.get('error') or 'no reason given'}", cell, settings)
    best_metric = optional_number(summary, "best_metric")
    if best_metric is None:
        raise Unusable("diverged: no finite validation metric", cell, settings)
    seconds = get(summary, "seconds", dict)
    direction = get(summary, "metric_direction", str)
    if direction not in ("minimize", "maximize"):
        raise Unusable(f"summary.json: metric_direction is {direction!r}")
    steps = int(number(summary, "steps"))
    run_seconds = {name: number(seconds, name) for name in _SECONDS}
    return FinishedRun(
        path=stored.path,
        cell=cell,
        seed=int(number(config, "seed")),
        key=str(config.get("key")),
        shown_directory=stored.shown,
        sweep=_sweep(directory, cell, config),
        settings=settings,
        asked=words,
        rate=rate,
        weight_decay=weight_decay,
        metric_name=get(summary, "metric_name", str),
        direction="minimize" if direction == "minimize" else "maximize",
        best_metric=best_metric,
        test_metric=optional_number(summary, "test_metric"),
        epochs=number(summary, "epochs"),
        steps=steps,
        steps_per_epoch=int(number(summary, "steps_per_epoch")),
        stopped_early=bool(summary.get("stopped_early")),
        parameters=summary.get("parameters"),
        seconds=run_seconds,
        environment=_environment(files, str(config.get("device", "cpu"))),
        evaluations=tuple(_evaluations(files, steps, run_seconds["train"] + run_seconds["meta"])),
        modulation=_modulation(files),
    )


def _sweep(directory: Path, cell: Cell, config: dict[str, Any]) -> str | None:
    """The sweep whose layout the directory follows."""
    arm = cell.arm if cell.ablation is None else f"{cell.arm}+{cell.ablation}"
    place = (f"{cell.setting[0]}-{cell.setting[1]}", cell.task, arm, f"seed{config['seed']}")
    absolute = directory.resolve()
    return shown(absolute.parents[3]) if absolute.parts[-4:] == place else None


def _environment(run: RunFiles, device: str) -> str:
    content = read_object(run, "environment.json")
    machine = content.get("cpu") if device == "cpu" else content.get("accelerator") or device
    return (
        f"{machine}, {content.get('threads')} CPU thread(s), torch {content.get('torch')}, "
        f"metaadamw {content.get('metaadamw')}"
    )


def _evaluations(run: RunFiles, steps: int, compute: float) -> Iterator[Evaluation]:
    """The evaluations on the validation part, with the compute spent before each.

    Steps cost the same on average, and a proportional share is free of the clock's noise.
    """
    try:
        lines = run.read_text("metrics.jsonl").splitlines()
    except (ValueError, OSError):
        raise Unusable("metrics.jsonl is missing or cannot be read") from None
    found = False
    for row, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            if entry["kind"] == "evaluation" and entry["split"] == "validation":
                found = True
                yield Evaluation(
                    int(entry["step"]),
                    compute * (entry["step"] / max(steps, 1)),  # exactly all of it at the end
                    _float(entry["loss"]),
                    _float(entry["metric"]),
                )
        except (ValueError, KeyError, TypeError, OverflowError):
            raise Unusable(f"metrics.jsonl: line {row} cannot be read") from None
    if not found:
        raise Unusable("metrics.jsonl: no validation")


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _modulation(run: RunFiles) -> Modulation | None:
    try:
        header, *rows = csv.reader(io.StringIO(run.read_text("modulation.csv"), newline=""))
        table = np.array([[float(value) for value in row] for row in rows])
        groups = tuple(name.removesuffix("/alpha") for name in header if name.endswith("/alpha"))
        column = {name: table[:, index] for index, name in enumerate(header)}
        alpha = np.stack([column[f"{group}/alpha"] for group in groups], axis=1)
        beta = np.stack([column[f"{group}/beta"] for group in groups], axis=1)
        return Modulation(column["step"], groups, alpha, beta)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, IndexError, OSError, csv.Error):
        raise Unusable("modulation.csv cannot be read") from None
