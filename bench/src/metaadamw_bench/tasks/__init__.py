"""The tasks by name; a task's file, defining TASK, is imported only when it is asked for."""

from __future__ import annotations

import importlib

from metaadamw_bench.names import DEMO_TASKS, TASKS, unknown
from metaadamw_bench.tasks.spec import (
    Batch,
    Means,
    Metric,
    PaperNumbers,
    PreparedTask,
    Protocol,
    Size,
    Splits,
    Task,
)

__all__ = [
    "Batch",
    "Means",
    "Metric",
    "PaperNumbers",
    "PreparedTask",
    "Protocol",
    "Size",
    "Splits",
    "Task",
    "demo_task_names",
    "get_task",
    "task_names",
]


def task_names() -> list[str]:
    """Names of all tasks, in the order in which they are shown."""
    return list(TASKS)


def demo_task_names() -> list[str]:
    """Names of the tasks of ``metaadamw demo``, whose data travel inside installed packages."""
    return list(DEMO_TASKS)


def get_task(name: str) -> Task:
    """Import a task's file and return its specification.

    Raises:
        ValueError: no task has this name.
    """
    if name not in TASKS:
        raise ValueError(f"task: {unknown(name, TASKS)}")
    task: Task = importlib.import_module(f"{__name__}.{name}").TASK
    return task
