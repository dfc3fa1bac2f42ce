"""The tasks by name; a task's file is imported only when the task is asked for."""

from __future__ import annotations

import importlib

from metaadamw.bench.tasks.spec import (
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

# One file a task, each defining TASK.
_MODULES = {
    "etth1": "metaadamw.bench.tasks.etth1",
    "wikitext2": "metaadamw.bench.tasks.wikitext2",
    "multi30k": "metaadamw.bench.tasks.multi30k",
    "cifar10": "metaadamw.bench.tasks.cifar10",
    "imdb": "metaadamw.bench.tasks.imdb",
    "digits": "metaadamw.bench.tasks.digits",
    "pydoc": "metaadamw.bench.tasks.pydoc",
    "photos": "metaadamw.bench.tasks.photos",
}


def task_names() -> list[str]:
    """Names of all tasks, in the order in which they are shown."""
    return list(_MODULES)


def demo_task_names() -> list[str]:
    """Names of the tasks of ``metaadamw demo``, whose data travel inside installed packages."""
    return ["digits", "pydoc"]


def get_task(name: str) -> Task:
    """Import a task's file and return its specification.

    Raises:
        ValueError: no task has this name.
    """
    if name not in _MODULES:
        raise ValueError(f"task: {name!r} is not one of {', '.join(_MODULES)}")
    task: Task = importlib.import_module(_MODULES[name]).TASK
    return task
