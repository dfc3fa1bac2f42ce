"""What is asked for, and the run that it comes to: every number that a run depends on."""

from __future__ import annotations

import copy
import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from metaadamw import __version__
from metaadamw.checks import check_number
from metaadamw.choices import chosen
from metaadamw_bench.names import suggestion
from metaadamw_bench.tasks import PreparedTask, Protocol, Size
from metaadamw_bench.today import settings_of_today

if TYPE_CHECKING:
    from metaadamw_bench.arm import Arm

__all__ = ["DoesNotFit", "Precision", "RunConfig", "RunRequest", "resolve"]

Precision = Literal["fp32", "bf16"]

# What a generator of torch takes.
_SEEDS = 2**63


class DoesNotFit(ValueError):
    """An arm or ablation that would be another run under its own name."""


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """A run as it is asked for on the command line.

    Attributes:
        task: name of the task.
        arm: name of the arm.
        seed: fixes weights, order of the data, dropout, augmentation, meta batches, modulator.
        protocol: "paper" or "clean".
        size: "small" or "full".
        ablation: one of ``ABLATIONS``, for arms with a modulator.
        epochs: passes over the training part at most, the task's own number by default.
        max_steps: cuts the run after so many steps; nothing else changes.
        lr: learning rate instead of the task's.
        weight_decay: weight decay instead of the task's.
        changes: further settings of the arm, for example ``{"learning.every": 10}``.
        threads: CPU threads.
        device: "cpu", "cuda", "cuda:1", "mps".
        precision: "fp32", or "bf16" for bfloat16 autocast.
    """

    task: str
    arm: str
    seed: int = 0
    protocol: Protocol = "clean"
    size: Size = "small"
    ablation: str | None = None
    epochs: int | None = None
    max_steps: int | None = None
    lr: float | None = None
    weight_decay: float | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 1
    device: str = "cpu"
    precision: Precision = "fp32"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A resolved run; the same configuration gives the same numbers.

    Attributes:
        epochs: passes over the training part at most.
        total_steps: steps of so many epochs, what schedules count on.
        processes: how many processes share every batch.

    The others are those of ``RunRequest`` and ``PreparedTask``.
    """

    task: str
    arm: str
    ablation: str | None
    seed: int
    protocol: Protocol
    size: Size
    epochs: int
    max_steps: int | None
    steps_per_epoch: int
    total_steps: int
    lr: float
    weight_decay: float
    betas: tuple[float, float]
    batch_size: int
    patience: int | None
    min_delta: float
    arm_settings: dict[str, Any]
    threads: int
    device: str
    precision: Precision
    processes: int

    @property
    def last_step(self) -> int:
        """The step at which the run ends if it does not stop earlier."""
        return min(self.total_steps, self.max_steps or self.total_steps)

    @property
    def key(self) -> str:
        """Fingerprint of the configuration."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def as_json(self) -> dict[str, Any]:
        """What ``config.json`` holds."""
        return {**asdict(self), "version": __version__, "key": self.key}

    def difference(self, saved: Mapping[str, Any]) -> str | None:
        """The first field that a ``config.json`` has otherwise; None: it is this configuration.

        What an older version did not know yet, it left at its default.
        """
        saved = {**saved, "arm_settings": settings_of_today(saved.get("arm_settings") or {})}
        own = json.loads(json.dumps(asdict(self)))
        return next((name for name, value in own.items() if saved.get(name) != value), None)


def resolve(request: RunRequest, task: PreparedTask, arm: Arm, processes: int = 1) -> RunConfig:
    """Fill in what the request leaves to the task and the arm.

    Raises:
        ValueError: an ablation or setting that the arm does not have.
        DoesNotFit: the arm or the ablation makes no difference for this task.
    """
    from metaadamw_bench.ablations import ablate

    with torch.device("meta"):  # without drawing random numbers
        if not arm.fits(task.build_model()):
            raise DoesNotFit(f"arm {arm.name} does not fit the model of {task.name}")
    settings = copy.deepcopy(arm.settings(task))
    if request.ablation is not None:
        ablate(request.ablation, arm, settings, task.steps_per_epoch)
    for name, value in request.changes.items():
        _change(settings, name, value, arm)
    if arm.modulated:
        _check(settings)
    if arm.matches is not None and None in settings.values():
        raise ValueError(
            f"arm {arm.name} needs a finished run of {arm.matches} (--matched-to DIR)"
            + (" or a number (--mean-alpha)" if "mean_alpha" in settings else "")
        )
    epochs = request.epochs or task.max_epochs["metaadamw" if arm.modulated else "adamw"]
    lr = task.lr if arm.lr is None else arm.lr
    lr = (lr if request.lr is None else request.lr) * settings.get("mean_alpha", 1.0)
    if arm.decay_per_step is not None and not lr:
        raise ValueError(f"lr must be above 0 for arm {arm.name}, whose weight decay follows it")
    decay = task.weight_decay if arm.decay_per_step is None else arm.decay_per_step / lr
    decay = decay if request.weight_decay is None else request.weight_decay
    for name, value in (("lr", lr), ("weight_decay", decay)):
        check_number(name, value, 0.0)
    check_number("seed", request.seed, 0, _SEEDS, open_high=True)
    return RunConfig(
        task=task.name,
        arm=arm.name,
        ablation=request.ablation,
        seed=request.seed,
        protocol=task.protocol,
        size=task.size,
        epochs=epochs,
        max_steps=request.max_steps,
        steps_per_epoch=task.steps_per_epoch,
        total_steps=epochs * task.steps_per_epoch,
        lr=lr,
        weight_decay=decay,
        betas=task.betas,
        batch_size=task.batch_size,
        patience=task.patience,
        min_delta=task.min_delta,
        arm_settings=settings,
        threads=request.threads,
        device=request.device,
        precision=request.precision,
        processes=processes,
    )


def _check(settings: Mapping[str, Any]) -> None:
    """Let the library refuse what it does not take, before a run leaves any trace."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it comes again where the optimizer is made
        chosen(settings["modulator"], settings["learning"])


def _change(settings: dict[str, Any], name: str, value: Any, arm: Arm) -> None:
    """Set ``key`` or ``section.key``; what makes a value right is for the optimizer to say."""
    section, _, key = name.rpartition(".")
    place = settings.get(section) if section else settings
    if not isinstance(place, dict) or key not in place or isinstance(place[key], dict):
        known = [k for k, v in settings.items() if not isinstance(v, dict)]
        known += [f"{s}.{k}" for s, v in settings.items() if isinstance(v, dict) for k in v]
        raise ValueError(
            f"arm {arm.name} has no setting {name!r}; it has: {', '.join(known) or 'none'}"
            + suggestion(name, known)
        )
    place[key] = value
