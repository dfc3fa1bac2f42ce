"""Where runs are kept below the root of a sweep."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metaadamw_bench.config import RunRequest

__all__ = ["RATE", "arm_place", "run_place", "shown"]

RATE = "lr-x"
"""Begins the name of an arm's variant with another learning rate, in units of the task's."""


def arm_place(root: Path, request: RunRequest, variant: str | None = None) -> Path:
    """The directory of an arm: ``ROOT/<protocol>-<size>/<task>/<arm>[+variant]``.

    The variant is by default the request's ablation.
    """
    variant = variant or request.ablation
    arm = request.arm if variant is None else f"{request.arm}+{variant}"
    return root / f"{request.protocol}-{request.size}" / request.task / arm


def run_place(root: Path, request: RunRequest, variant: str | None = None) -> Path:
    """The directory of a run: that of its arm, and the seed."""
    return arm_place(root, request, variant) / f"seed{request.seed}"


def shown(path: Path) -> str:
    """A directory as a command names it: relative to where it runs, if it is below that."""
    with suppress(ValueError):
        return path.resolve().relative_to(Path.cwd().resolve()).as_posix()
    return path.resolve().name
