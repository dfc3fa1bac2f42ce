"""The example of that name: processes are killed, and the same command goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from tests.training import assert_same

EXAMPLE = Path(__file__).parents[2] / "examples" / "elastic_checkpoint.py"
PATIENCE = 120.0


def start(run: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", str(EXAMPLE), str(run), "--steps=24", "--every=6"]
    return subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(run: Path) -> str:
    """Give the command and wait for its end."""
    process = start(run)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    return output


def kill_one(run: Path, rank: int, when: Callable[[], bool]) -> None:
    """Give the command and kill one of its processes, with no warning, once ``when`` says so."""
    process = start(run)
    assert process.stdout is not None
    output, found = "", None
    while found is None:
        line = process.stdout.readline()
        assert line, output
        output += line
        found = re.search(rf"rank {rank} is process (\d+)", line)
    deadline = time.monotonic() + PATIENCE
    while not when():
        assert process.poll() is None, "it came to its end first"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(int(found[1]), signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    assert process.returncode != 0


def content(checkpoint: Path, scratch: Path) -> Any:
    dcp_to_torch_save(checkpoint, scratch)
    return torch.load(scratch, weights_only=True)


def test_killed_processes_lose_nothing_that_was_checkpointed(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(whole)

    # While a checkpoint is written, the one that would give it its name.
    first, unfinished = killed / "step-000006", killed / "unfinished"
    kill_one(killed, 0, lambda: first.exists() and unfinished.exists())
    there = sorted(path.name for path in killed.glob("step-*"))
    assert there[0] == first.name
    assert f"goes on from step {int(there[-1][-6:])}" in finish(killed)

    names = [f"step-{step:06d}" for step in (6, 12, 18, 24)]
    assert sorted(path.name for path in killed.glob("step-*")) == names
    for name in names:
        found, expected = (content(run / name, tmp_path / "file") for run in (killed, whole))
        assert_same(found, expected)
    assert expected["optimizer"]["param_groups"][0]["metaadamw"]["steps"] == 24
