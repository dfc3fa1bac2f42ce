"""What belongs to the whole process and is switched for a while, by several threads perhaps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

__all__ = ["Switch"]


class Switch:
    """A switch that threads share: on from the first that enters to the last that leaves.

    Each thread for itself would note what another has switched, and put that back for good.

    Args:
        turn: a context that notes the state, switches, and puts the state back.
    """

    def __init__(self, turn: Callable[[], AbstractContextManager[object]]) -> None:
        self._turn = turn
        self._lock = threading.RLock()
        self._users = 0
        self._turned: AbstractContextManager[object] | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """On inside the block."""
        with self._lock:
            if not self._users:
                turned = self._turn()
                turned.__enter__()
                self._turned = turned
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users and self._turned is not None:
                    turned, self._turned = self._turned, None
                    turned.__exit__(None, None, None)
