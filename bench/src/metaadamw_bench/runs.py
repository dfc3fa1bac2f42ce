"""A run from its request to its summary; stopped at any moment, it goes on where it was.

The directory holds the configuration, the environment, the journals and, once it is done, the
summary. A checkpoint is written every so often. What a killed run had done since its last
checkpoint is done again, and comes out the same to the last bit.
"""

from __future__ import annotations

import math
import time
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metaadamw import MetaAdamW
from metaadamw.learning.windows import window_at
from metaadamw_bench.arm import Arm
from metaadamw_bench.arms import get_arm
from metaadamw_bench.config import RunConfig, RunRequest
from metaadamw_bench.environment import environment
from metaadamw_bench.parallel import Workplace, processes
from metaadamw_bench.progress import RunProgress
from metaadamw_bench.resolving import resolve
from metaadamw_bench.resuming import VERSIONS, UnusableCheckpoint, check, unusable
from metaadamw_bench.run_directory import (
    CHECKPOINT,
    CONFIG,
    ENVIRONMENT,
    METRICS,
    MODULATION,
    SECONDS,
    SUMMARY,
    Damaged,
    Journal,
    RunDirectory,
    finite,
)
from metaadamw_bench.stopping import Standing
from metaadamw_bench.tasks import PreparedTask, get_task
from metaadamw_bench.trainer import Trainer

__all__ = ["Diverged", "RunOptions", "execute", "finished_summary", "prepare"]

# About so many training losses and rows of α and β are kept of a whole run.
_ROWS = 100


_FACTORS = ("alpha", "beta")


class Diverged(ArithmeticError):
    """The training loss is not a number any more."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What changes how a run goes on, but not its numbers.

    Attributes:
        data_dir: where the data are.
        checkpoint_seconds: time between two checkpoints.
        keep_checkpoint: keep the last one when the run is done.
        shown: show progress.
        restart: start over, whatever of the same run is in its directory.
    """

    data_dir: Path | None = None
    checkpoint_seconds: float = 30.0
    keep_checkpoint: bool = True
    shown: bool = True
    restart: bool = False


def prepare(request: RunRequest, data_dir: Path | None) -> PreparedTask:
    """The task of a request, with its data."""
    return get_task(request.task).prepare(
        protocol=request.protocol, size=request.size, data_dir=data_dir
    )


def finished_summary(directory: Path, config: RunConfig) -> dict[str, Any] | None:
    """The summary of a run that is done; None if it is not.

    Raises:
        ValueError: the directory holds a run of another configuration, or of one that is lost.
    """
    run = RunDirectory(directory)
    before, summary = run.read_json(CONFIG), run.read_json(SUMMARY)
    finished = summary is not None and summary.get("status") == "finished"
    if before is None:
        if finished or (directory / CONFIG).exists() or (directory / CHECKPOINT).exists():
            raise ValueError(
                f"{directory} holds a run, but {CONFIG} is missing or damaged and does not say "
                "which: choose another directory or remove that one"
            )
        return None
    if (name := config.difference(before)) is not None:
        raise ValueError(
            f"{directory} holds a run with another {name} ({before.get(name)!r}, now "
            f"{getattr(config, name)!r}): choose another directory or remove that one"
        )
    return summary if finished else None


def execute(
    request: RunRequest,
    directory: Path,
    options: RunOptions,
    task: PreparedTask | None = None,
    arm: Arm | None = None,
) -> dict[str, Any]:
    """Do a run, or what is left of it.

    Args:
        request: the run.
        directory: where it is kept.
        options: how it goes on.
        task: the task with its data, where the caller has it already.
        arm: an arm that is on no list, in place of the request's.

    Returns:
        The summary as its file holds it: what is not finite is None.

    Raises:
        ValueError: the request does not make sense, or the directory holds another run.
        UnusableCheckpoint: the run was stopped, and cannot go on where it was; nothing is changed.
        Diverged: the training loss is not a number any more.
        OSError: the disk is full, or something else is wrong with the directory.
    """
    arm = arm or get_arm(request.arm)
    arm.check_installed()
    task = task or prepare(request, options.data_dir)
    config = resolve(request, task, arm, processes())
    # The caller's random numbers go on as if nothing had happened.
    with torch.random.fork_rng(devices=[]):
        workplace = Workplace.enter(
            request.device, bf16=request.precision == "bf16", threads=request.threads
        )
        with RunDirectory(directory).locked() if workplace.writes else nullcontext():
            workplace.barrier()  # nobody looks before the lock is held,
            summary = finished_summary(directory, config)
            workplace.barrier()  # or after the run has begun to write
            if summary is not None and not options.restart:
                return summary
            return _Run(task, arm, config, workplace, directory, options).complete()


class _Run:
    """One run in one process."""

    def __init__(
        self,
        task: PreparedTask,
        arm: Arm,
        config: RunConfig,
        workplace: Workplace,
        directory: Path,
        options: RunOptions,
    ) -> None:
        self.task, self.config, self.workplace, self.options = task, config, workplace, options
        self.directory = RunDirectory(directory)
        self.trainer = Trainer(task, arm, config, workplace)
        self.standing = Standing(config.patience, config.min_delta, task.metric.direction)
        self.thinning = math.ceil(config.last_step / _ROWS)
        self.applied = self.skipped = 0
        optimizer = self.trainer.optimizer
        self.modulated = optimizer if isinstance(optimizer, MetaAdamW) else None
        self.shares = torch.empty(0)  # of each group in the number of parameters
        self.sum_alpha = torch.zeros((), dtype=torch.float64)
        self.window = config.arm_settings.get("learning", {}).get("window", 1)
        if self.modulated is not None:
            sizes = [sum(p.numel() for p in g["params"]) for g in self.modulated.param_groups]
            self.shares = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
        self.journals: dict[str, Journal] = {}
        self.started = time.perf_counter()

    def complete(self) -> dict[str, Any]:
        """Go through what is left, and leave a summary whatever happens."""
        lengths = self._resume()
        with ExitStack() as stack:
            try:
                self._start(stack, lengths)
                title = f"{self.config.task}, {self.config.arm}, seed {self.config.seed}"
                shown = self.options.shown and self.workplace.writes
                with RunProgress(title, self.config.last_step, shown=shown) as progress:
                    self._train(progress)
                summary: dict[str, Any] = finite(self._summary("finished"))
            except Exception as error:
                if self.workplace.writes:
                    with suppress(OSError):
                        failed = self._summary("failed", f"{type(error).__name__}: {error}")
                        self.directory.write_json(SUMMARY, failed)
                raise
            if self.workplace.writes:
                if self.options.keep_checkpoint:
                    self._save()
                self.directory.write_json(SUMMARY, summary)
                if not self.options.keep_checkpoint:
                    self.directory.remove_checkpoint()
            self.workplace.barrier()
        return summary

    # Beginning and going on ----------------------------------------------------------------------

    def _resume(self) -> dict[str, int]:
        """Load the checkpoint if there is one; how long the journals were then."""
        if self.options.restart:
            if self.workplace.writes:
                self.directory.remove_checkpoint()
            return {}
        checkpoint, problem = None, None
        try:
            checkpoint = self.directory.read_checkpoint()
            if checkpoint is not None:
                check(checkpoint, self.config.key, self.directory)
        except Damaged as error:
            problem = unusable(self.directory, error)
        except UnusableCheckpoint as error:
            problem = error
        # Rank 0 decides for all, so that no process waits for one that has given up.
        there, usable = self.workplace.from_rank_zero(
            lambda: [float(checkpoint is not None), float(problem is None)], 2
        )
        if not usable or (there and checkpoint is None):
            raise problem or unusable(self.directory, "the first process sees another one")
        if not there or checkpoint is None:
            return {}
        try:
            self.trainer.load_state_dict(checkpoint["trainer"])
            self.standing.load_state_dict(checkpoint["standing"])
            self.applied, self.skipped = checkpoint["applied"], checkpoint["skipped"]
            self.sum_alpha = checkpoint["sum_alpha"]
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            raise unusable(self.directory, error, checkpoint) from error
        lengths: dict[str, int] = checkpoint["lengths"]
        return lengths

    def _start(self, stack: ExitStack, lengths: dict[str, int]) -> None:
        """Open the journals where the checkpoint left them."""
        self.started = time.perf_counter() - self.trainer.seconds.total
        self.saved = time.perf_counter()
        if not self.workplace.writes:
            return
        (self.directory / SUMMARY).unlink(missing_ok=True)  # of an attempt that failed
        self.directory.write_json(CONFIG, self.config.as_json())
        self.directory.write_json(ENVIRONMENT, environment())
        names = [METRICS, SECONDS] + ([MODULATION] if self.modulated is not None else [])
        for name in names:
            self.journals[name] = Journal(self.directory / name, lengths.get(name, 0))
            stack.callback(self.journals[name].close)
        if self.modulated is not None and not lengths:
            columns = [f"{g}/{part}" for g in self.modulated.group_names for part in _FACTORS]
            self.journals[MODULATION].write(",".join(["step", *columns]))

    def _save(self) -> None:
        """Write a checkpoint."""
        self.trainer.seconds.total = time.perf_counter() - self.started
        self.directory.write_checkpoint(
            {
                "key": [self.config.key, *VERSIONS.values()],
                "trainer": self.trainer.state_dict(),
                "standing": self.standing.state_dict(),
                "applied": self.applied,
                "skipped": self.skipped,
                "sum_alpha": self.sum_alpha,
                "lengths": {name: journal.length() for name, journal in self.journals.items()},
            }
        )
        self.saved = time.perf_counter()

    # Training ------------------------------------------------------------------------------------

    def _train(self, progress: RunProgress) -> None:
        trainer, config = self.trainer, self.config
        while trainer.step < config.last_step and not self.standing.stop:
            loss = trainer.train_step()
            if not math.isfinite(loss):
                raise Diverged(f"the training loss is {loss} at step {trainer.step}")
            with trainer.seconds.spent_on("logging"):
                progress.step(trainer.step, loss)
                self._record(loss)
            if trainer.meta_update_due:
                self._meta_update()
            if trainer.step % config.steps_per_epoch == 0 or trainer.step == config.last_step:
                self._evaluate(progress)
            since = time.perf_counter() - self.saved
            if self.workplace.writes and since > self.options.checkpoint_seconds:
                with trainer.seconds.spent_on("logging"):
                    self._save()

    @property
    def epoch(self) -> int:
        """The epoch that is going on or has just ended, from 1."""
        return math.ceil(self.trainer.step / self.config.steps_per_epoch)

    def _log(self, kind: str, **entry: Any) -> None:
        if METRICS in self.journals:
            self.journals[METRICS].write_json(kind=kind, step=self.trainer.step, **entry)

    def _record(self, loss: float) -> None:
        """Training loss and modulation of a step."""
        step = self.trainer.step
        kept = step % self.thinning == 0
        if kept:
            self._log("train", epoch=self.epoch, loss=loss)
        if self.modulated is None:
            return
        alpha, beta, *_ = self.modulated.modulation
        self.sum_alpha = self.sum_alpha + alpha.cpu().double() @ self.shares
        # A window holds its factors: its first step tells them all, however few rows there are.
        begins = self.window > 1 and window_at(step - 1, self.window)[0] == step - 1
        if (kept or begins) and MODULATION in self.journals:
            factors = torch.stack([alpha, beta], dim=1).flatten().tolist()
            row = ",".join([str(step), *(f"{factor:.8g}" for factor in factors)])
            self.journals[MODULATION].write(row)

    def _meta_update(self) -> None:
        update = self.trainer.meta_update()
        self.applied += update.applied
        self.skipped += not update.applied
        self._log(
            "meta",
            applied=update.applied,
            skipped_reason=update.skipped_reason,
            total=update.total,
            gradient_alignment=update.gradient_alignment,
            loss_decrease=update.loss_decrease,
            generalization_gap=update.generalization_gap,
            hvp=update.hvp,
        )

    def _evaluate(self, progress: RunProgress) -> None:
        trainer = self.trainer
        means, weights = trainer.evaluate(self.task.splits.validation)
        self.standing.add(means, weights, epoch=self.epoch, step=trainer.step)
        with trainer.seconds.spent_on("logging"):
            self._log("evaluation", epoch=self.epoch, split="validation", **means._asdict())
            if SECONDS in self.journals:
                trainer.seconds.total = time.perf_counter() - self.started
                self.journals[SECONDS].write_json(epoch=self.epoch, **trainer.seconds.as_dict())
            progress.evaluation(self.epoch, trainer.step, self.task.metric.name, means.metric)

    # The end -------------------------------------------------------------------------------------

    def _summary(self, status: str, error: str | None = None) -> dict[str, Any]:
        trainer, config, steps = self.trainer, self.config, self.trainer.step
        test = self.task.splits.test
        means = None
        if test is not None and status == "finished":
            # Read once, with the weights that validation has picked.
            means = trainer.evaluate_weights(self.standing.weights, test)
        trainer.seconds.total = time.perf_counter() - self.started
        modulated = self.modulated is not None and steps > 0
        return {
            "task": config.task,
            "arm": config.arm,
            "ablation": config.ablation,
            "seed": config.seed,
            "protocol": config.protocol,
            "size": config.size,
            "status": status,
            "error": error,
            **self.standing.numbers(),
            "test_loss": None if means is None else means.loss,
            "test_metric": None if means is None else means.metric,
            "epochs": self.epoch,
            "steps": steps,
            "stopped_early": steps < config.last_step and status == "finished",
            "parameters": self.task.parameters,
            "steps_per_epoch": config.steps_per_epoch,
            "metric_name": self.task.metric.name,
            "metric_direction": self.task.metric.direction,
            "meta_applied": self.applied,
            "meta_skipped": self.skipped,
            "mean_alpha": (self.sum_alpha / steps).item() if modulated else None,
            "seconds": trainer.seconds.as_dict(),
            "key": config.key,
        }
