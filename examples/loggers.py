"""What the optimizer did, in TensorBoard, Weights & Biases and MLflow, from one training loop.

    pip install . tensorboard
    pip install wandb mlflow-skinny  # both, one or none: those installed are used
    python examples/loggers.py runs/loggers

Trained on Python's own documentation. All is written to that directory: no account, no server.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from metaadamw import Hypergradient, MetaAdamW, NumberedBatches, fine_grained_groups

CONTEXT, WIDTH = 16, 64


def start_loggers(output: Path, stack: ExitStack) -> list[Callable[[dict[str, float], int], None]]:
    """One function of numbers and step for each logger; ``stack`` closes them."""
    writer = stack.enter_context(SummaryWriter(str(output / "tensorboard")))

    def tensorboard(numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    logs: list[Callable[[dict[str, float], int], None]] = [tensorboard]
    if find_spec("wandb"):
        import wandb

        run = stack.enter_context(wandb.init(project="metaadamw", mode="offline", dir=output))
        logs.append(lambda numbers, step: run.log(numbers, step=step))
    if find_spec("mlflow"):
        import mlflow

        os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"  # MLflow 3 wants to be asked twice
        mlflow.set_tracking_uri((output / "mlruns").resolve().as_uri())
        stack.enter_context(mlflow.start_run())
        logs.append(lambda numbers, step: mlflow.log_metrics(numbers, step=step))
    return logs


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    text = "\n".join(topics[name] for name in sorted(topics))
    tokens = torch.tensor(list(text.encode("ascii", "replace")))
    batches = NumberedBatches(tokens.unfold(0, CONTEXT + 1, CONTEXT + 1), 64)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(128, 16), nn.Flatten(), nn.Linear(CONTEXT * 16, WIDTH))
    model.extend([nn.GELU(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 128)])
    optimizer = MetaAdamW(
        fine_grained_groups(model), lr=1e-3, modulator="attention", learning=Hypergradient()
    )
    with ExitStack() as stack:
        logs = start_loggers(options.output, stack)
        for step in range(options.steps):
            windows = batches[step]
            loss = nn.functional.cross_entropy(model(windows[:, :-1]), windows[:, -1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if optimizer.steps % 20 == 0:
                numbers = {"loss": loss.detach(), **optimizer.metrics()}
                numbers = {name: float(value) for name, value in numbers.items()}
                for log in logs:
                    log(numbers, optimizer.steps)
    print(
        f"loss {loss.item():.3f}; every logger has {len(numbers)} curves of {options.steps // 20}"
    )
    print(f"tensorboard --logdir {options.output} shows them")
