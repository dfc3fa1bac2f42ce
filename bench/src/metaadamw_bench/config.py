"""What is asked for, and the run that it comes to: every number that a run depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from metaadamw import __version__
from metaadamw_bench.tasks import Protocol, Size
from metaadamw_bench.today import settings_of_today

__all__ = ["DoesNotFit", "Precision", "RunConfig", "RunRequest"]

Precision = Literal["fp32", "bf16"]


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
