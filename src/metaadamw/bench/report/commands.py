"""The commands that make a table again: the runs first, then the report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from shlex import join

from metaadamw.bench.places import RATE
from metaadamw.bench.report.collection import arm_order, task_order
from metaadamw.bench.report.runs import FinishedRun
from metaadamw.bench.report.setting import Setting

__all__ = ["report_command", "run_commands"]


def report_command(roots: Sequence[str]) -> str:
    """The command that writes this report; DIR is wherever it shall go."""
    return join(["metaadamw", "report", *roots, "--out", "DIR"])


def run_commands(runs: Iterable[FinishedRun]) -> Iterator[str]:
    """The commands that make these runs: sweeps, and single runs for what no sweep places."""
    plain: dict[str, list[FinishedRun]] = {}
    ablated: dict[tuple[str, str], list[FinishedRun]] = {}
    rates: dict[str, list[FinishedRun]] = {}
    single = []
    for run in runs:
        if run.sweep is None:
            single.append(run)
        elif run.cell.ablation is None:
            plain.setdefault(run.sweep, []).append(run)
        elif run.is_rate_variant:
            rates.setdefault(run.sweep, []).append(run)
        else:
            ablated.setdefault((run.sweep, run.cell.arm), []).append(run)
    for sweep, own in (*plain.items(), *rates.items()):
        yield _sweep(own, sweep, arms=sorted({run.cell.arm for run in own}, key=arm_order))
    for (sweep, arm), own in ablated.items():
        yield _sweep(own, sweep, arms=[arm], ablation_arm=arm)
    for run in single:
        setting = run.cell.setting
        yield _with_options(
            ["metaadamw", "run", run.cell.task],
            {
                "--arm": run.cell.arm,
                "--ablation": None if run.is_rate_variant else run.cell.ablation,
                "--lr": f"{run.rate:g}" if run.is_rate_variant else None,
                "--seed": str(run.seed),
                "--protocol": setting.protocol,
                "--size": setting.size,
                **_length(setting),
                "--out": run.shown_directory,
            },
        )


def _sweep(
    runs: Sequence[FinishedRun], root: str, *, arms: Sequence[str], ablation_arm: str | None = None
) -> str:
    setting = runs[0].cell.setting
    variants = sorted({run.cell.ablation for run in runs if run.cell.ablation})
    factors = [name.removeprefix(RATE) for name in variants if name.startswith(RATE)]
    ablations = [name for name in variants if not name.startswith(RATE)]
    return _with_options(
        ["metaadamw", "sweep"],
        {
            "--tasks": ",".join(sorted({run.cell.task for run in runs}, key=task_order)),
            "--arms": ",".join(arms),
            "--ablations": ",".join(ablations) or None,
            "--ablation-arm": ablation_arm,
            "--lr-factors": ",".join(sorted(factors, key=float)) or None,
            "--seeds": _ranges(sorted({run.seed for run in runs})),
            "--protocol": setting.protocol,
            "--size": setting.size,
            **_length(setting),
            "--out": root,
        },
    )


def _length(setting: Setting) -> dict[str, str | None]:
    """Options for runs of another length than the task's."""
    lengths = {"--epochs": setting.epochs, "--max-steps": setting.max_steps}
    return {name: None if length is None else str(length) for name, length in lengths.items()}


def _with_options(words: list[str], options: dict[str, str | None]) -> str:
    for name, value in options.items():
        words += [] if value is None else [name, value]
    return join(words)


def _ranges(seeds: Sequence[int]) -> str:
    """``0-4,7``."""
    ends: list[list[int]] = []
    for seed in seeds:
        if ends and seed == ends[-1][1] + 1:
            ends[-1][1] = seed
        else:
            ends.append([seed, seed])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ends)
