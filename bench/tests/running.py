"""Runs for tests: the command in a process of its own, and what of a run must never differ."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

WITHOUT_TIMES = ("config.json", "metrics.jsonl", "modulation.csv")


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "metaadamw_bench", *map(str, words)]


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **variables}


def metaadamw(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(
        command(*words), env=environment(**variables), capture_output=True, text=True, check=False
    )


def summary(directory: Path) -> dict[str, Any]:
    """The summary without the wall time."""
    found: dict[str, Any] = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    del found["seconds"]
    return found


def numbers(directory: Path, *, checkpoint: bool = True) -> dict[str, Any]:
    """Everything of a run but the wall time; equal for equal runs, to the last bit."""
    found: dict[str, Any] = {"summary": summary(directory)}
    for name in WITHOUT_TIMES:
        path = directory / name
        found[name] = path.read_bytes() if path.exists() else None
    if checkpoint:
        state = torch.load(directory / "checkpoint.pt", weights_only=True)
        del state["trainer"]["seconds"], state["lengths"]["seconds.jsonl"]
        found["checkpoint"] = plain(state)
    return found


def plain(value: Any) -> Any:
    """Tensors as bytes, so that == compares every bit."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.flatten().view(torch.uint8).tolist()
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value
