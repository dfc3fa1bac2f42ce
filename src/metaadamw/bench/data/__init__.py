"""The data sets by name; a data set's file is imported only when it is asked for."""

from __future__ import annotations

import importlib
from typing import Any

from metaadamw.bench.data.files import DataError, DataSet, Found, fetch, find, load

__all__ = [
    "DataError",
    "DataSet",
    "Found",
    "data_set_names",
    "fetch",
    "find",
    "get_data_set",
    "load",
]

# One file a data set, each defining DATA_SET.
_NAMES = ("etth1", "wikitext2", "multi30k", "cifar10", "imdb")


def data_set_names() -> list[str]:
    """Names of all data sets."""
    return list(_NAMES)


def get_data_set(name: str) -> DataSet[Any]:
    """Import a data set's file and return its description.

    Raises:
        ValueError: no data set has this name.
    """
    if name not in _NAMES:
        raise ValueError(f"data set: {name!r} is not one of {', '.join(_NAMES)}")
    data_set: DataSet[Any] = importlib.import_module(f"metaadamw.bench.data.{name}").DATA_SET
    return data_set
