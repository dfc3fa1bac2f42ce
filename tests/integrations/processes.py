"""Programs in processes of their own that may be killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.training import assert_same

ROOT = Path(__file__).parents[2]
EXAMPLES_DIRECTORY = ROOT / "examples"


def run(*command: str, **environment: str) -> int:
    """Run a command; its exit code, negative the signal that ended it."""
    process = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    print(process.stderr)  # shown if the test fails
    return process.returncode


def run_program(report: Path, *program: str, kill_at: int = -1) -> int:
    """Run a Python program, see ``run_example.py``; its exit code."""
    module = "tests.integrations.run_example"
    return run(sys.executable, "-m", module, str(kill_at), str(report), *program)


def run_two(launcher: Sequence[str], report: Path, *program: str) -> dict[str, Any]:
    """Run a program in two processes; what its optimizer holds at the end, alike in both."""
    cpu = {} if torch.cuda.device_count() > 1 else {"ACCELERATE_USE_CPU": "true"}
    module = "tests.integrations.run_example"
    assert run(*launcher, module, "-1", str(report), *program, **cpu) == 0
    ranks = [torch.load(report / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    assert_same(ranks[0], ranks[1])
    result: dict[str, Any] = ranks[0]
    return result
