"""Where runs are kept below the root of a sweep."""

from __future__ import annotations

from pathlib import Path

from metaadamw.bench.config import RunRequest

__all__ = ["arm_place", "run_place"]


def arm_place(root: Path, request: RunRequest) -> Path:
    """The directory of an arm: ``ROOT/<protocol>-<size>/<task>/<arm>[+ablation]``."""
    arm = request.arm if request.ablation is None else f"{request.arm}+{request.ablation}"
    return root / f"{request.protocol}-{request.size}" / request.task / arm


def run_place(root: Path, request: RunRequest) -> Path:
    """The directory of a run: that of its arm, and the seed."""
    return arm_place(root, request) / f"seed{request.seed}"
