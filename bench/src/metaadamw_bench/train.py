"""A run of the demo: a fixed number of steps, watched closely and kept in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from metaadamw import MetaAdamW, Recorder
from metaadamw_bench.arm import Arm
from metaadamw_bench.config import RunRequest
from metaadamw_bench.parallel import Workplace
from metaadamw_bench.resolving import resolve
from metaadamw_bench.tasks import PreparedTask
from metaadamw_bench.trainer import Trainer

__all__ = ["STEPS", "Evaluation", "Run", "train"]

STEPS = 300

_EVALUATIONS = 10


@dataclass(frozen=True)
class Evaluation:
    """Mean loss and metric on the validation part after ``step`` steps."""

    step: int
    loss: float
    metric: float


@dataclass
class Run:
    """What a run leaves behind: every number the report needs.

    Attributes:
        task: name of the task.
        arm: name of the arm.
        seed: the seed.
        losses: training loss of each step.
        evaluations: validation loss and metric before the first step, in between, after the last.
        seconds: time by what it was spent on.
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
    seconds: dict[str, float] = field(default_factory=dict)
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
        The run; the same arguments give the same numbers, apart from the time taken.
    """
    steps = STEPS if steps is None else steps
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    epochs = math.ceil(steps / task.steps_per_epoch)
    request = RunRequest(task=task.name, arm=arm.name, seed=seed, epochs=epochs, max_steps=steps)
    # The caller's random numbers go on as if nothing had happened.
    with torch.random.fork_rng(devices=[]):
        trainer = Trainer(task, arm, resolve(request, task, arm), Workplace(torch.device("cpu")))
        return _train(trainer, Run(task.name, arm.name, seed), steps, on_step)


def _train(trainer: Trainer, run: Run, steps: int, on_step: Callable[[float], None]) -> Run:
    validation = trainer.task.splits.validation
    optimizer = trainer.optimizer
    recorder = Recorder(optimizer) if isinstance(optimizer, MetaAdamW) else None
    evaluate_at = {round(i * steps / _EVALUATIONS) for i in range(_EVALUATIONS + 1)}
    run.evaluations.append(Evaluation(0, *trainer.evaluate(validation)[0]))
    for step in range(1, steps + 1):
        run.losses.append(trainer.train_step())
        if recorder is not None:
            recorder.record()
        if trainer.meta_update_due:
            update = trainer.meta_update()
            if update.applied:
                run.meta_updates += 1
            else:
                run.skipped.append(f"step {step}: {update.skipped_reason}")
        if step in evaluate_at:
            run.evaluations.append(Evaluation(step, *trainer.evaluate(validation)[0]))
        on_step(run.losses[-1])
    if recorder is not None:
        run.groups = list(recorder.groups)
        run.alpha, run.beta = recorder.alpha.tolist(), recorder.beta.tolist()
    run.seconds = trainer.seconds.as_dict()
    return run
