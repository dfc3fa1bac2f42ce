"""Programs in processes of their own that may be killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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
