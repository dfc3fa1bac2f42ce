"""Whether a run can go on at its checkpoint; if it cannot, nothing of it is dropped unasked."""

from __future__ import annotations

import json
from typing import Any

import torch

from metaadamw import __version__
from metaadamw_bench.run_directory import CHECKPOINT, METRICS, RunDirectory

__all__ = ["VERSIONS", "UnusableCheckpoint", "check", "unusable"]

VERSIONS = {"metaadamw": __version__, "torch": str(torch.__version__)}
"""A checkpoint of other versions would not give the same numbers."""


class UnusableCheckpoint(ValueError):
    """A run has been stopped, and cannot go on where it was."""


def check(checkpoint: dict[str, Any], key: str, directory: RunDirectory) -> None:
    """Check that a checkpoint is this run's, and that the journals hold what it counts on.

    Args:
        checkpoint: as it was read.
        key: the run's.
        directory: the run's.

    Raises:
        UnusableCheckpoint: says why, and what would be lost.
    """
    problem = _problem(checkpoint, key, directory)
    if problem is not None:
        raise unusable(directory, problem, checkpoint)


def unusable(
    directory: RunDirectory, problem: object, checkpoint: dict[str, Any] | None = None
) -> UnusableCheckpoint:
    """The error that says what the problem is, what would be lost, and how to start over."""
    said = " ".join(str(problem).split())
    return UnusableCheckpoint(
        f"{directory / CHECKPOINT} cannot be used: {said}; {_lost(directory, checkpoint)} would be "
        "lost: give --restart to start over all the same, or choose another directory"
    )


def _problem(checkpoint: dict[str, Any], key: str, directory: RunDirectory) -> str | None:
    written, lengths = checkpoint.get("key"), checkpoint.get("lengths")
    if not isinstance(written, list) or not isinstance(lengths, dict):
        return "it is none of a run"
    versions = dict(zip(VERSIONS, written[1:], strict=False))
    if versions != VERSIONS:
        return (
            f"it was written with {_named(versions)}, here is {_named(VERSIONS)}, and the numbers "
            "would not be those of a run that was never stopped"
        )
    if written[0] != key:
        return "it is of a run with other settings"
    for name, length in lengths.items():
        path = directory / name
        if not path.exists() or path.stat().st_size < length:
            return f"{name} has lost some of what it counts on"
    return None


def _named(versions: dict[str, str]) -> str:
    return " and ".join(f"{name} {version}" for name, version in versions.items())


def _lost(directory: RunDirectory, checkpoint: dict[str, Any] | None) -> str:
    """How far the run had come, as its checkpoint says, or else its journal."""
    trainer = (checkpoint or {}).get("trainer")
    if isinstance(trainer, dict) and "step" in trainer:
        seconds = trainer.get("seconds", {}).get("total", 0.0)
        return f"{trainer['step']} steps ({_duration(seconds)})"
    try:
        text = (directory / METRICS).read_text(encoding="utf-8", errors="replace")
        lines = text[: text.rfind("\n") + 1].splitlines()
        return f"{json.loads(lines[-1])['step']} steps"
    except (OSError, ValueError, LookupError, TypeError):  # lost as well, or damaged
        return "all that it has done"


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
