"""``examples/huggingface_trainer.py`` in a process that may kill itself; not a test.

OUTPUT ARCHITECTURE MODE KILL_AT, the step at whose beginning it dies, -1 for never.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

EXAMPLE = Path(__file__).parents[2] / "examples" / "huggingface_trainer.py"


class Kill(TrainerCallback):
    """Kill this process where no handler can do anything about it."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def train(output: Path, architecture: str, mode: str, kill_at: int = -1) -> Trainer:
    """Twelve steps with a checkpoint every four; goes on from the last one."""
    trainer = runpy.run_path(str(EXAMPLE))["build_trainer"](
        output,
        architecture,
        mode,
        max_steps=12,
        save_steps=4,
        logging_steps=1,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
    )
    trainer.add_callback(Kill(kill_at))
    trainer.train(resume_from_checkpoint=get_last_checkpoint(output))
    return trainer


if __name__ == "__main__":
    train(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
