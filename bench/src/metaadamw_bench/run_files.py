"""The files of a run as they are read, wherever they lie."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

__all__ = ["RunFiles"]


class RunFiles(ABC):
    """Reads the files of one run.

    Args:
        path: the directory of the run; for a packed one, where it was when it was packed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def read_bytes(self, name: str) -> bytes:
        """What is in a file.

        Raises:
            FileNotFoundError: there is no such file.
        """

    def read_text(self, name: str) -> str:
        """The same as text."""
        return self.read_bytes(name).decode()

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The object in a file; None if there is no such file or no object in it."""
        try:
            found = json.loads(self.read_text(name))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        return found if isinstance(found, dict) else None
