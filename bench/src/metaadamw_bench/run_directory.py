"""The directory of a run: nothing in it is ever half written.

Whole files are replaced in one go. Journals only grow, and a resumed run cuts them back to the
length they had at its checkpoint.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch

from metaadamw_bench.run_files import RunFiles

__all__ = ["Damaged", "Journal", "RunDirectory", "named"]

CHECKPOINT = "checkpoint.pt"
CONFIG = "config.json"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
MODULATION = "modulation.csv"
SECONDS = "seconds.jsonl"
SUMMARY = "summary.json"


class Damaged(ValueError):
    """A checkpoint that cannot be read."""


class RunDirectory(RunFiles):
    """Reads and writes the files of one run."""

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of the directory; waits for one that is in it.

        The lock goes with the process that holds it, however that ends.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for the process that works in {self.path}", file=sys.stderr)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def read_bytes(self, name: str) -> bytes:
        """What is in a file."""
        return (self.path / name).read_bytes()

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Replace a file in one go."""
        text = json.dumps(finite(content), indent=2, ensure_ascii=False, allow_nan=False)
        # Of a name that is no text, as in an error's message, JSON's own escape is left.
        self._replace(name, f"{text}\n".encode("utf-8", "backslashreplace"))

    def read_checkpoint(self) -> dict[str, Any] | None:
        """The last checkpoint; None if there is none.

        Raises:
            Damaged: there is one that cannot be read.
        """
        try:
            with ZipFile(self.path / CHECKPOINT) as archive:  # torch.load compares no checksum
                if (damaged := archive.testzip()) is not None:
                    raise BadZipFile(f"the checksum of {damaged} is wrong")
            found = torch.load(self.path / CHECKPOINT, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None
        except Exception as error:
            # Any damage leads here, each with an exception of its own.
            raise Damaged(str(error) or type(error).__name__) from error
        if not isinstance(found, dict):
            raise Damaged(f"it holds a {type(found).__name__}")
        return found

    def remove_checkpoint(self) -> None:
        """Leave neither a checkpoint nor the beginnings of one."""
        for name in (CHECKPOINT, _temporary(CHECKPOINT)):
            (self.path / name).unlink(missing_ok=True)

    def write_checkpoint(self, content: Mapping[str, Any]) -> None:
        """Replace the checkpoint in one go."""
        # By way of memory, because torch.save turns a full disk into an obscure RuntimeError.
        buffer = io.BytesIO()
        torch.save(dict(content), buffer)
        self._replace(CHECKPOINT, buffer.getbuffer())

    def _replace(self, name: str, content: bytes | memoryview) -> None:
        temporary = self.path / _temporary(name)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path / name)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise named(error, self.path / name) from error


def _temporary(name: str) -> str:
    return f".{name}.tmp"


class Journal:
    """A text file to which lines are added.

    Args:
        path: the file.
        length: bytes to keep of what is there.
    """

    def __init__(self, path: Path, length: int = 0) -> None:
        self._file = path.open("a", encoding="utf-8", buffering=1, newline="\n")
        try:
            self._file.truncate(length)
        except OSError as error:
            raise named(error, path) from error

    def write(self, line: str) -> None:
        """Add a line."""
        try:
            self._file.write(line + "\n")
        except OSError as error:
            raise named(error, Path(self._file.name)) from error

    def write_json(self, **entry: Any) -> None:
        """Add an object as a line."""
        self.write(json.dumps(finite(entry), allow_nan=False))

    def length(self) -> int:
        """Bytes in the file, all of them on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Close the file; what a full disk has not taken is lost."""
        with suppress(OSError):
            self._file.close()


def named(error: OSError, path: Path) -> OSError:
    """The error with the file that it is about; that a disk is full comes without."""
    return OSError(error.errno, error.strerror, str(path))


def finite(content: Any) -> Any:
    """The same content with None in place of numbers that JSON does not know (nan, inf)."""
    if isinstance(content, float) and not math.isfinite(content):
        return None
    if isinstance(content, Mapping):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return content
