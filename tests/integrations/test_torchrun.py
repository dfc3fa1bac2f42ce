"""The examples of DDP and FSDP2, as ``torchrun`` starts them."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.integrations.processes import EXAMPLES_DIRECTORY, ROOT


@pytest.mark.parametrize(("example", "mode"), [("ddp.py", "lookahead"), ("fsdp.py", "online")])
def test_example(example: str, mode: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(EXAMPLES_DIRECTORY / example)]
    process = subprocess.run(
        [*command, "--mode", mode, "--steps", "31"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    print(process.stderr)
    assert process.returncode == 0
    first = float(re.search(r"step    0  loss (\S+)", process.stdout)[1])
    ranks = re.findall(r"rank \d: validation loss (\S+), alpha (.*)", process.stdout)
    assert len(ranks) == 2
    assert ranks[0] == ranks[1]
    loss, alpha = ranks[0]
    assert float(loss) < first - 1
    assert any(abs(float(a) - 1) > 0.01 for a in alpha.split())
