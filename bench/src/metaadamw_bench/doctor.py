"""What is installed, which devices and data there are, and what a run will cost."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from metaadamw.kernels.cpu import library
from metaadamw_bench.arms import get_arm
from metaadamw_bench.config import RunRequest
from metaadamw_bench.data import DataError, data_set_names, find, get_data_set
from metaadamw_bench.environment import cpu_name
from metaadamw_bench.parallel import Workplace
from metaadamw_bench.resolving import resolve
from metaadamw_bench.showing import wrapping_table
from metaadamw_bench.tasks import PreparedTask, Size, get_task, task_names
from metaadamw_bench.trainer import Trainer

__all__ = ["costs", "data", "devices", "installed", "tasks_with_data"]

_PACKAGES = {
    "torch": "everything",
    "typer": "the command line",
    "scikit-learn": "the task digits",
    "matplotlib": "pictures",
    "scipy": "statistics of reports",
    "schedulefree": "the arm schedulefree",
    "prodigyopt": "the arm prodigy",
    "ray": "sweeps on a cluster",
}
_ARMS = ("adamw", "metaadamw", "metaadamw-online", "metaadamw-paper")
_COSTS = ("step, ms", "meta-\nupdate, ms", "epoch, s", "epochs", "run, min")
_WARM_UP, _STEPS = 2, 5


def installed() -> Table:
    """Versions of what the bench uses."""
    table = wrapping_table("package", "version", "needed for", title="Installed")
    table.add_row("python", platform.python_version(), "")
    for name in ("metaadamw", *_PACKAGES):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = "[yellow]not installed[/yellow]"
        table.add_row(name, version, _PACKAGES.get(name, ""))
    return table


def devices() -> Table:
    """What can compute."""
    table = wrapping_table("device", "what it is", title="Devices")
    kernels = "kernels compiled" if library(torch.float32) else "without kernels"
    table.add_row("cpu", f"{cpu_name()}, {os.cpu_count()} cores, {kernels}")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        table.add_row(f"cuda:{index}", f"{properties.name}, {memory:.0f} GiB")
    if torch.backends.mps.is_available():
        table.add_row("mps", "Apple graphics")
    return table


def data(data_dir: Path | None) -> Table:
    """Where each data set was found; the checksums are checked when it is read."""
    table = wrapping_table("data set", "where", title="Data")
    for name in data_set_names():
        try:
            found = find(get_data_set(name), data_dir)
        except DataError as error:
            table.add_row(name, f"[red]{escape(str(error))}[/red]")
            continue
        if found is None:
            table.add_row(name, "[yellow]not here[/yellow]; metaadamw data fetch " + name)
        else:
            table.add_row(name, escape(f"{found.paths[0].parent} ({found.layout.name})"))
    return table


def tasks_with_data(data_dir: Path | None) -> list[str]:
    """The tasks that can run without a download."""
    found = []
    for name in task_names():
        data_set = get_task(name).data_set
        try:
            if data_set is None or find(get_data_set(data_set), data_dir) is not None:
                found.append(name)
        except DataError:
            pass
    return found


def costs(
    names: Sequence[str], size: Size, *, device: str, threads: int, data_dir: Path | None
) -> Group:
    """Time of a step, of an epoch with its evaluation, and of a run of the clean protocol."""
    tables = []
    with torch.random.fork_rng(devices=[]):
        for name in names:
            specification = get_task(name)
            task_size = size if size in specification.sizes else specification.sizes[0]
            task = specification.prepare(size=task_size, data_dir=data_dir)
            table = wrapping_table(
                *("arm", *_COSTS),
                title=f"{name}, {task_size}: what a run costs at most; {device}, "
                f"{threads} thread{'s'[: threads != 1]}",
                numbers=_COSTS,
            )
            for arm in _ARMS:
                table.add_row(arm, *_cost(task, arm, device, threads))
            tables.append(table)
    return Group(*tables)


def _cost(task: PreparedTask, arm_name: str, device: str, threads: int) -> list[str]:
    workplace = Workplace.enter(device, bf16=False, threads=threads)
    arm = get_arm(arm_name)
    request = RunRequest(task=task.name, arm=arm_name)
    config = resolve(request, task, arm)
    trainer = Trainer(task, arm, config, workplace)
    for _ in range(_WARM_UP):
        trainer.train_step()
    before = trainer.seconds.train
    for _ in range(_STEPS):
        trainer.train_step()
    step = (trainer.seconds.train - before) / _STEPS

    updates = 0.0
    if config.arm_settings.get("learning", {}).get("kind") == "lookahead":
        trainer.meta_update()
        updates = 1 / config.arm_settings["learning"]["every"]
    meta = trainer.seconds.meta

    validation = task.splits.validation
    part = min(len(validation), 2 * task.evaluation_batch_size)
    trainer.evaluate(torch.utils.data.TensorDataset(*validation[:part]))
    evaluation = trainer.seconds.evaluation * len(validation) / part

    epoch = config.steps_per_epoch * (step + meta * updates) + evaluation
    return [
        f"{1000 * step:.1f}",
        f"{1000 * meta:.0f}" if updates else "",
        f"{epoch:.1f}",
        str(config.epochs),
        f"{epoch * config.epochs / 60:.1f}",
    ]
