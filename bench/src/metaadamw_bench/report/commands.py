"""The commands that make a table again: the runs first, then the report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

from metaadamw_bench.arms import ARMS
from metaadamw_bench.places import RATE
from metaadamw_bench.printable import shell_command
from metaadamw_bench.report.asked import Asked
from metaadamw_bench.report.collection import arm_order, task_order
from metaadamw_bench.report.runs import FinishedRun
from metaadamw_bench.report.setting import Setting

__all__ = ["report_command", "run_commands"]

_Key = TypeVar("_Key")
_Item = TypeVar("_Item")


def report_command(roots: Sequence[str]) -> str:
    """The command that writes this report; DIR is wherever it shall go."""
    return shell_command(["metaadamw", "report", *roots, "--out", "DIR"])


class _Sweep(NamedTuple):
    """What all runs of a command have in common.

    ``ablated`` is the arm that ablations change; a command has one.
    """

    root: str
    setting: Setting
    asked: Asked
    ablated: str | None = None


class _Place(NamedTuple):
    """Where a run stands within its sweep."""

    arm: str
    task: str
    seed: int


class _Block(NamedTuple):
    """Arms × tasks × seeds, and each with the same variants: the arm alone has none."""

    arms: tuple[str, ...]
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    variants: tuple[str, ...]


def run_commands(runs: Iterable[FinishedRun]) -> Iterator[str]:
    """The commands that make these runs and no others, but for those that tuned arms read.

    Sweeps, and single runs for what no sweep makes.
    """
    given = list(runs)
    plain: dict[_Sweep, dict[_Place, list[str]]] = {}
    varied: dict[_Sweep, dict[_Place, list[str]]] = {}
    single = []
    for run in sorted(given, key=lambda run: run.cell.ablation is not None):
        if run.sweep is None or not run.asked.by_a_sweep:
            single.append(run)
            continue
        sweep = _Sweep(run.sweep, run.cell.setting, run.asked._replace(mean_alpha=None))
        place = _Place(run.cell.arm, run.cell.task, run.seed)
        if run.cell.ablation is None:
            plain.setdefault(sweep, {})[place] = []
        elif place not in plain.get(sweep, {}):
            single.append(run)  # a sweep would bring the arm without the change along
        else:
            own = sweep if run.is_rate_variant else sweep._replace(ablated=run.cell.arm)
            varied.setdefault(own, {}).setdefault(place, []).append(run.cell.ablation)
    for group in (plain, varied):
        for sweep, places in group.items():
            for block in _blocks(places):
                yield _sweep_command(sweep, block)
    for run in single:
        yield _run_command(run)


def _blocks(places: Mapping[_Place, Sequence[str]]) -> Iterator[_Block]:
    """Products that hold these places and no others."""
    seeds = _grouped(
        ((arm, task, tuple(sorted(variants))), seed)
        for (arm, task, seed), variants in places.items()
    )
    tasks = _grouped(
        ((arm, tuple(sorted(own)), variants), task) for (arm, task, variants), own in seeds.items()
    )
    arms = _grouped(
        ((tuple(sorted(own, key=task_order)), found, variants), arm)
        for (arm, found, variants), own in tasks.items()
    )
    for (found_tasks, found_seeds, variants), own in arms.items():
        yield _Block(tuple(sorted(own, key=arm_order)), found_tasks, found_seeds, variants)


def _grouped(pairs: Iterable[tuple[_Key, _Item]]) -> dict[_Key, list[_Item]]:
    found: dict[_Key, list[_Item]] = {}
    for key, item in pairs:
        found.setdefault(key, []).append(item)
    return found


def _sweep_command(sweep: _Sweep, block: _Block) -> str:
    factors = [name.removeprefix(RATE) for name in block.variants if name.startswith(RATE)]
    ablations = [name for name in block.variants if not name.startswith(RATE)]
    return _with_options(
        ["metaadamw", "sweep"],
        {
            "--tasks": ",".join(block.tasks),
            "--arms": ",".join(block.arms),
            "--ablations": ",".join(ablations) or None,
            "--ablation-arm": sweep.ablated,
            "--lr-factors": ",".join(sorted(factors, key=float)) or None,
            "--seeds": _ranges(block.seeds),
            **_setting(sweep.setting),
        },
        [*sweep.asked.options, "--out", sweep.root],
    )


def _run_command(run: FinishedRun) -> str:
    processes = str(run.asked.processes)
    shared = ["torchrun", "--nproc-per-node", processes, "-m", "metaadamw_bench", "run"]
    words = ["metaadamw", "run"] if run.asked.processes == 1 else shared
    arm = ARMS.get(run.cell.arm)
    chosen = arm is not None and arm.tunes is not None
    changes = [word for change in run.asked.changes for word in ("--set", change)]
    return _with_options(
        [*words, run.cell.task],
        {
            "--arm": run.cell.arm,
            "--ablation": None if run.is_rate_variant else run.cell.ablation,
            # The task's or others: that the run itself does not tell.
            "--lr": None if chosen else f"{run.rate:g}",
            "--weight-decay": None if chosen else str(run.weight_decay),
            "--mean-alpha": None if run.asked.mean_alpha is None else str(run.asked.mean_alpha),
            "--seed": str(run.seed),
            **_setting(run.cell.setting),
        },
        [*run.asked.options, *changes, "--out", run.shown_directory],
    )


def _setting(setting: Setting) -> dict[str, str | None]:
    """Protocol and size, and the length where it is not the task's."""
    return {
        "--protocol": setting.protocol,
        "--size": setting.size,
        "--epochs": None if setting.epochs is None else str(setting.epochs),
        "--max-steps": None if setting.max_steps is None else str(setting.max_steps),
    }


def _with_options(
    words: Sequence[str], options: Mapping[str, str | None], more: Sequence[str]
) -> str:
    found = [word for name, value in options.items() if value is not None for word in (name, value)]
    return shell_command([*words, *found, *more])


def _ranges(seeds: Sequence[int]) -> str:
    """``0-4,7``."""
    ends: list[list[int]] = []
    for seed in seeds:
        if ends and seed == ends[-1][1] + 1:
            ends[-1][1] = seed
        else:
            ends.append([seed, seed])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ends)
