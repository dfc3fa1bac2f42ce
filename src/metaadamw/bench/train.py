"""One training run: a task, an arm, a seed.

Within a seed every arm starts from the same weights and sees the same batches and the same
dropout masks, so that differences between arms are paired.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils.data import TensorDataset

from metaadamw import MetaAdamW, Recorder
from metaadamw.bench.arms import Arm
from metaadamw.bench.tasks.spec import Batch, PreparedTask

__all__ = ["STEPS", "Evaluation", "Run", "Seconds", "train"]

STEPS = 300
_EVALUATIONS = 10
# Separate streams of random numbers: what one of them draws does not move the others.
_STREAMS = ("initialisation", "order", "dropout", "batch1", "batch2", "val_batch")


@dataclass(frozen=True)
class Evaluation:
    """Mean loss and metric on the validation part after ``step`` steps."""

    step: int
    loss: float
    metric: float


@dataclass
class Seconds:
    """Wall time by what it was spent on; ``optimizer_step`` is a part of ``training``."""

    training: float = 0.0
    optimizer_step: float = 0.0
    meta: float = 0.0
    evaluation: float = 0.0

    @contextmanager
    def spent_on(self, part: str) -> Iterator[None]:
        """Add the time inside the ``with`` block to ``part``."""
        start = time.perf_counter()
        yield
        setattr(self, part, getattr(self, part) + time.perf_counter() - start)


@dataclass
class Run:
    """What a run leaves behind: every number the report needs.

    Attributes:
        task: name of the task.
        arm: name of the arm.
        seed: the seed.
        losses: training loss of each step.
        evaluations: validation loss and metric before the first step, in between, after the last.
        seconds: wall time.
        groups: names of the modulated groups; empty if the optimizer modulates nothing.
        alpha: α of each step and group.
        beta: β of each step and group.
        meta_updates: number of meta-updates that were applied.
        skipped: reasons of the meta-updates that were not.
    """

    task: str
    arm: str
    seed: int
    losses: list[float] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    seconds: Seconds = field(default_factory=Seconds)
    groups: list[str] = field(default_factory=list)
    alpha: list[list[float]] = field(default_factory=list)
    beta: list[list[float]] = field(default_factory=list)
    meta_updates: int = 0
    skipped: list[str] = field(default_factory=list)


def train(
    task: PreparedTask,
    arm: Arm,
    seed: int,
    *,
    steps: int | None = None,
    on_step: Callable[[float], None] = lambda loss: None,
) -> Run:
    """Train a fresh model and return what happened.

    Args:
        task: the task.
        arm: the optimizer.
        seed: fixes initial weights, order of the data, dropout, meta batches and modulator.
        steps: optimizer steps, ``STEPS`` by default.
        on_step: called with the training loss after every step.

    Returns:
        The run; the same arguments give the same numbers, apart from the wall time.
    """
    steps = STEPS if steps is None else steps
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    # The caller's random numbers go on as if nothing had happened.
    with torch.random.fork_rng(devices=[]):
        return _train(task, arm, seed, steps, on_step)


def _train(
    task: PreparedTask, arm: Arm, seed: int, steps: int, on_step: Callable[[float], None]
) -> Run:
    run = Run(task.name, arm.name, seed)
    splits = task.splits
    torch.manual_seed(_stream(seed, "initialisation"))
    model = task.build_model()
    optimizer = arm.build(model, task, steps, seed)
    recorder = Recorder(optimizer) if isinstance(optimizer, MetaAdamW) else None
    batches = shuffled_batches(splits.train, task.batch_size, _stream(seed, "order"))
    meta_batches = (
        shuffled_batches(splits.train, task.batch_size, _stream(seed, "batch1")),
        shuffled_batches(splits.train, task.batch_size, _stream(seed, "batch2")),
        shuffled_batches(splits.meta_validation, task.batch_size, _stream(seed, "val_batch")),
    )
    evaluate_at = {round(i * steps / _EVALUATIONS) for i in range(_EVALUATIONS + 1)}
    torch.manual_seed(_stream(seed, "dropout"))

    with run.seconds.spent_on("evaluation"):
        run.evaluations.append(evaluate(task, model, splits.validation, step=0))
    for step in range(1, steps + 1):
        with run.seconds.spent_on("training"):
            loss = task.batch_loss(model, next(batches))
            optimizer.zero_grad()
            loss.backward()
            with run.seconds.spent_on("optimizer_step"):
                optimizer.step()
            run.losses.append(loss.item())
        if recorder is not None:
            recorder.record()
        if isinstance(optimizer, MetaAdamW) and optimizer.meta_update_due:
            with run.seconds.spent_on("meta"):
                update = optimizer.update_attention(
                    model, task.batch_loss, *(next(stream) for stream in meta_batches)
                )
            if update.applied:
                run.meta_updates += 1
            else:
                run.skipped.append(f"step {step}: {update.skipped_reason}")
        if step in evaluate_at:
            with run.seconds.spent_on("evaluation"):
                run.evaluations.append(evaluate(task, model, splits.validation, step=step))
        on_step(run.losses[-1])
    if recorder is not None:
        run.groups = list(recorder.groups)
        run.alpha, run.beta = recorder.alpha.tolist(), recorder.beta.tolist()
    return run


def _stream(seed: int, name: str) -> int:
    return seed * len(_STREAMS) + _STREAMS.index(name)


def shuffled_batches(dataset: TensorDataset, batch_size: int, seed: int) -> Iterator[Batch]:
    """Batches of endless shuffled passes; the incomplete last batch of a pass is left out."""
    batch_size = min(batch_size, len(dataset))
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(dataset), generator=generator)
        for start in range(0, len(order) - batch_size + 1, batch_size):
            yield dataset[order[start : start + batch_size]]


def evaluate(task: PreparedTask, model: nn.Module, dataset: TensorDataset, step: int) -> Evaluation:
    """Mean loss and metric over a whole split, in evaluation mode."""
    return Evaluation(step, *task.evaluate(model, dataset))
