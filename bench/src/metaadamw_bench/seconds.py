"""The time of a run by what it was spent on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

__all__ = ["Seconds"]


@dataclass
class Seconds:
    """Seconds of a run; ``optimizer_step`` is a part of ``train``, ``total`` is its wall time.

    Attributes:
        clock: what the parts are measured by.
        wait: called before every reading of the clock; waits for an accelerator to finish.
    """

    train: float = 0.0
    optimizer_step: float = 0.0
    meta: float = 0.0
    evaluation: float = 0.0
    logging: float = 0.0
    total: float = 0.0
    clock: Callable[[], float] = field(default=time.perf_counter, repr=False, compare=False)
    wait: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)

    @contextmanager
    def spent_on(self, part: str) -> Iterator[None]:
        """Add the time inside the ``with`` block to ``part``."""
        self.wait()
        start = self.clock()
        try:
            yield
        finally:
            self.wait()
            setattr(self, part, getattr(self, part) + self.clock() - start)

    def as_dict(self) -> dict[str, float]:
        """The seconds by name."""
        return {
            name: value for name, value in vars(self).items() if isinstance(value, (int, float))
        }

    def load(self, values: dict[str, float]) -> None:
        """Go on from the seconds that an earlier process has spent."""
        for name, value in values.items():
            setattr(self, name, value)
