"""Run a program in a process that may be killed; not a test.

    python -m tests.integrations.run_example KILL_AT REPORT PROGRAM ARGUMENTS...

KILL_AT: the completed steps after which the next one kills the process; -1: never. REPORT: a
directory; at the end every process writes there what its optimizer holds, into ``rank<R>.pt``.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from metaadamw import MetaAdamW


def main(kill_at: int, report: Path, program: str) -> None:
    used: list[MetaAdamW] = []

    def kill(optimizer: Any, *_: Any) -> None:
        if isinstance(optimizer, MetaAdamW) and optimizer.steps == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)  # no handler can do anything about it

    register_optimizer_step_pre_hook(kill)
    register_optimizer_step_post_hook(lambda optimizer, *_: used.append(optimizer))
    runpy.run_path(program, run_name="__main__")
    report.mkdir(parents=True, exist_ok=True)
    path = report / f"rank{os.environ.get('RANK', '0')}.pt"
    params = [p.detach() for group in used[-1].param_groups for p in group["params"]]
    torch.save({"params": params, "learned": used[-1].meta_state_dict()}, path)


if __name__ == "__main__":
    _, kill_at, report, *sys.argv = sys.argv
    main(int(kill_at), Path(report), sys.argv[0])
