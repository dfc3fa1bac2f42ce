"""Fields of JSON files that anyone may have touched: there and of their kind, or said not to be."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from metaadamw.bench.report.likeness import Settings
from metaadamw.bench.report.setting import Cell

__all__ = ["Unusable", "get", "number", "optional_number", "read_object"]


class Unusable(Exception):
    """Why a run directory is left out, and of which cell it is where the run itself failed."""

    def __init__(
        self, reason: str, cell: Cell | None = None, settings: Settings | None = None
    ) -> None:
        super().__init__(reason)
        self.cell, self.settings = cell, settings or {}


def read_object(path: Path) -> dict[str, Any]:
    """The object in a file."""
    if not path.exists():
        raise Unusable(f"unfinished: no {path.name}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise Unusable(f"{path.name} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise Unusable(f"{path.name} is not an object")
    return content


def get(content: dict[str, Any], name: str, kind: type) -> Any:
    """A field of a kind."""
    if not isinstance(content.get(name), kind):
        raise Unusable(f"{name} is missing or not a {kind.__name__}")
    return content[name]


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
