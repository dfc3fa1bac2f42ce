"""Each number of processes is started once for all tests of a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.distributed.processes import Processes


@pytest.fixture(scope="session")
def processes() -> Iterator[Callable[[int], Processes]]:
    """A function of the number of ranks that gives them, started on first use."""
    started: dict[int, Processes] = {}

    def of_size(size: int) -> Processes:
        if size not in started or not started[size].alive():
            started[size] = Processes(size)
        return started[size]

    yield of_size
    for group in started.values():
        group.close()
