"""What a run ran on."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from metaadamw import __version__

__all__ = ["cpu_name", "environment"]


def environment() -> dict[str, Any]:
    """Versions and hardware, as ``environment.json`` holds them."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "metaadamw": __version__,
        "git_commit": _git_commit(),
        "cpu": cpu_name(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
    }


def _git_commit() -> str | None:
    """The commit of the source tree this package is in; None if it was installed elsewhere."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "ls-files", "--error-unmatch", Path(__file__).name],
            cwd=here,
            capture_output=True,
            check=False,
        )
        if found.returncode != 0:
            return None
        head = ["git", "rev-parse", "HEAD"]
        return subprocess.run(
            head, cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def cpu_name() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
