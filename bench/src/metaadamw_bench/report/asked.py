"""What a run was asked for besides its task, arm, seed and length, in words of a command."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from metaadamw_bench.arms import ARMS
from metaadamw_bench.config import RunRequest
from metaadamw_bench.report.likeness import arm_settings
from metaadamw_bench.tasks import PreparedTask, task_names

__all__ = ["Asked", "asked"]

_OPTIONS = ("threads", "device", "precision")
_DEFAULTS = {f.name: f.default for f in fields(RunRequest)}


class Asked(NamedTuple):
    """What is not as a command does it by itself.

    Attributes:
        options: words that sweeps and single runs both take.
        changes: settings of the arm, ``KEY=VALUE``, which only single runs take.
        processes: how many torchrun started.
        mean_alpha: what a matched arm took from another run; a sweep brings that run along.
    """

    options: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    processes: int = 1
    mean_alpha: float | None = None

    @property
    def by_a_sweep(self) -> bool:
        """Whether a sweep can do it."""
        return not self.changes and self.processes == 1


def asked(config: Mapping[str, Any]) -> Asked:
    """What the run with this ``config.json`` was asked for."""
    options: list[str] = []
    for name in _OPTIONS:
        value = config.get(name, _DEFAULTS[name])
        options += [] if value == _DEFAULTS[name] else [f"--{name}", str(value)]
    mean_alpha = config["arm_settings"].get("mean_alpha")
    return Asked(tuple(options), tuple(_changes(config)), config.get("processes", 1), mean_alpha)


def _changes(config: Mapping[str, Any]) -> Iterator[str]:
    """The settings that the arm does not have by itself; an ablation stands for its own."""
    arm, saved = ARMS.get(config["arm"]), config["arm_settings"]
    if arm is None or not saved or config.get("ablation") or config["task"] not in task_names():
        return
    # Of a task, an arm's settings depend on no more than this; its data need not be here.
    task = SimpleNamespace(
        name=config["task"],
        protocol=config["protocol"],
        steps_per_epoch=config["steps_per_epoch"],
    )
    usual = arm_settings(arm.settings(cast(PreparedTask, task)))
    for name, value in arm_settings(saved).items():
        if name not in usual or usual[name] != value:
            yield f"{name}={json.dumps(value)}"
