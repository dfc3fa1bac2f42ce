"""Fields of JSON files that anyone may have touched: there and of their kind, or said not to be."""

from __future__ import annotations

import json
import math
from typing import Any

from metaadamw_bench.printable import is_text, printable
from metaadamw_bench.report.likeness import Settings
from metaadamw_bench.report.setting import Cell
from metaadamw_bench.run_files import RunFiles

__all__ = ["Unusable", "get", "number", "optional_number", "read_object"]


class Unusable(Exception):
    """Why a run directory is left out, and of which cell it is where the run itself failed."""

    def __init__(
        self, reason: str, cell: Cell | None = None, settings: Settings | None = None
    ) -> None:
        super().__init__(reason)
        self.cell, self.settings = cell, settings or {}


def read_object(run: RunFiles, name: str) -> dict[str, Any]:
    """The object in a file of a run."""
    try:
        content = json.loads(run.read_text(name))
    except FileNotFoundError:
        raise Unusable(f"unfinished: no {name}") from None
    except (ValueError, OSError) as error:
        raise Unusable(f"{name} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise Unusable(f"{name} is not an object")
    return content


def get(content: dict[str, Any], name: str, kind: type) -> Any:
    """A field of a kind."""
    value = content.get(name)
    if not isinstance(value, kind):
        raise Unusable(f"{name} is missing or not a {kind.__name__}")
    if isinstance(value, str) and not is_text(value):
        raise Unusable(f"{name} is no text: {printable(value)}")
    return value


def number(content: dict[str, Any], name: str) -> float:
    """A finite number."""
    value = content.get(name)
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise Unusable(f"{name} is missing or not a finite number")
    return value


def optional_number(content: dict[str, Any], name: str) -> float | None:
    """A finite number; what is not, or was not and is written as null, is None."""
    value = content.get(name)
    if value is not None and not isinstance(value, (int, float)):
        raise Unusable(f"{name} is not a number")
    return None if value is None or not math.isfinite(value) else float(value)
