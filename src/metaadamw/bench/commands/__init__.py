"""The commands of ``metaadamw``, one file each."""

from metaadamw.bench.commands.app import app

# Importing a command's file adds it to the app; the order is that of --help.
from metaadamw.bench.commands import (  # isort: skip
    demo,
    inspect,
    tasks,
    arms,
    data,
    run,
    watch,
    sweep,
    report,
    doctor,
)

__all__ = [
    "app",
    "arms",
    "data",
    "demo",
    "doctor",
    "inspect",
    "report",
    "run",
    "sweep",
    "tasks",
    "watch",
]
