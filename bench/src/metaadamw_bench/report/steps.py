"""How far a report is."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

__all__ = ["ReportProgress", "Steps", "Tell", "quiet"]

Tell = Callable[[str, int, int], None]
"""``tell(what, done, total)``: what is done next, and how many of how many steps are."""


def quiet(what: str, done: int, total: int) -> None:
    """Tells nothing."""


class Steps:
    """Counts steps.

    Args:
        tell: is told of each as it begins.
        total: how many there will be.
    """

    def __init__(self, tell: Tell, total: int) -> None:
        self.tell, self.total, self.done = tell, total, 0

    def begin(self, what: str) -> None:
        """What was begun before is done."""
        self.tell(what, self.done, self.total)
        self.done += 1


class ReportProgress:
    """A bar on standard error, if that is a terminal."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._row = self._bar.add_task("", total=None)

    def tell(self, what: str, done: int, total: int) -> None:
        """Show it."""
        self._bar.update(self._row, description=what, completed=done, total=total)

    def __enter__(self) -> ReportProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()
