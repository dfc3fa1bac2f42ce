"""``examples/lightning_text.py`` in a process that may kill itself; not a test.

OUTPUT MODE KILL_AT, the step after which it dies, -1 for never. Losses go to OUTPUT/losses.txt.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

EXAMPLE = Path(__file__).parents[2] / "examples" / "lightning_text.py"


QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Losses(Callback):
    """Write every loss, to the last bit; die after a certain step."""

    def __init__(self, path: Path, kill_at: int) -> None:
        self.path, self.kill_at = path, kill_at

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        with self.path.open("a") as file:
            file.write(f"{trainer.current_epoch} {batch_idx} {outputs['loss'].item().hex()}\n")
        if trainer.global_step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def train(output: Path, mode: str, kill_at: int = -1) -> Trainer:
    """Four epochs of six batches, three steps each; goes on from the last checkpoint."""
    output.mkdir(parents=True, exist_ok=True)
    trainer: Trainer = runpy.run_path(str(EXAMPLE))["train"](
        output,
        mode,
        epochs=4,
        batch_size=8,
        examples=48,
        accumulate_grad_batches=2,
        **QUIET,
        callbacks=[Losses(output / "losses.txt", kill_at)],
    )
    return trainer


if __name__ == "__main__":
    train(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
