"""What runs have in common that stand in one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from metaadamw_bench.tasks import get_task, task_names

__all__ = ["Cell", "Setting"]


class Setting(NamedTuple):
    """Runs of different settings are never put into one table.

    Attributes:
        protocol: ``paper`` or ``clean``.
        size: ``small`` or ``full``.
        max_steps: where the runs were cut, None if they were not.
        epochs: how many were asked for, None if as many as the task has.
    """

    protocol: str
    size: str
    max_steps: int | None
    epochs: int | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Setting:
        """The setting of a run with this ``config.json``.

        Raises:
            ValueError: protocol or size are missing or unknown, or a length is no number.
        """
        protocol, size = config.get("protocol"), config.get("size")
        if protocol not in ("paper", "clean") or size not in ("small", "full"):
            raise ValueError(f"protocol is {protocol!r}, size is {size!r}")
        for name in ("epochs", "max_steps"):
            if not isinstance(config.get(name), int | None):
                raise ValueError(f"{name} is {config[name]!r}")
        epochs, task = config.get("epochs"), config.get("task")
        kind = "metaadamw" if "modulator" in config.get("arm_settings", {}) else "adamw"
        if task in task_names() and epochs == get_task(task).max_epochs(protocol, size)[kind]:
            epochs = None
        return cls(protocol, size, config.get("max_steps"), epochs)

    @property
    def title(self) -> str:
        """The setting in words."""
        cut = "" if self.max_steps is None else f", cut after {self.max_steps} steps"
        length = "" if self.epochs is None else f", {self.epochs} epoch{'s'[: self.epochs != 1]}"
        return f"{self.protocol} protocol, {self.size} size{length}{cut}"

    @property
    def slug(self) -> str:
        """The setting as part of a file name."""
        cut = "" if self.max_steps is None else f"-{self.max_steps}"
        length = "" if self.epochs is None else f"-{self.epochs}-epochs"
        return f"{self.protocol}-{self.size}{length}{cut}"


class Cell(NamedTuple):
    """What runs that differ in their seed alone have in common."""

    setting: Setting
    task: str
    arm: str
    ablation: str | None
