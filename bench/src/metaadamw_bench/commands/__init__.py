"""The commands of ``metaadamw``, one file each."""

from metaadamw_bench.commands.app import app

# Importing a command's file adds it to the app; the order is that of --help.
from metaadamw_bench.commands import (  # isort: skip
    demo,
    inspect,
    tasks,
    arms,
    data,
    run,
    watch,
    sweep,
    report,
    pack,
    doctor,
)

__all__ = [
    "app",
    "arms",
    "data",
    "demo",
    "doctor",
    "inspect",
    "pack",
    "report",
    "run",
    "sweep",
    "tasks",
    "watch",
]
