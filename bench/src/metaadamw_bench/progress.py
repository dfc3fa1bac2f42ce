"""What a run shows while it goes on: a bar on a terminal, lines elsewhere, or nothing."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["RunProgress"]


class RunProgress:
    """Loss, metric and the time that is left, on standard error.

    Args:
        title: what runs.
        total: steps of the whole run.
        shown: False shows nothing.
    """

    def __init__(self, title: str, total: int, *, shown: bool = True) -> None:
        console = Console(stderr=True)
        self._lines = console if shown and not console.is_terminal else None
        self._title, self._total, self._metric = title, total, ""
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not shown or not console.is_terminal,
        )
        self._row = self._bar.add_task(title, total=total, numbers="")

    def step(self, step: int, loss: float) -> None:
        """A training step is done."""
        self._bar.update(self._row, completed=step, numbers=f"loss {loss:.4g}{self._metric}")

    def evaluation(self, epoch: int, step: int, metric_name: str, metric: float) -> None:
        """An evaluation is done."""
        self._metric = f", {metric_name} {metric:.5g}"
        if self._lines is not None:
            self._lines.print(
                f"{self._title}: epoch {epoch}, step {step} of at most {self._total}{self._metric}",
                soft_wrap=True,
                highlight=False,
            )

    def __enter__(self) -> RunProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()
