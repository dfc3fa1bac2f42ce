"""The data sets by name; a file of them, defining DATA_SET, is imported when it is asked for."""

from __future__ import annotations

import importlib
from typing import Any

from metaadamw_bench.data.files import DataError, DataSet, Found, fetch, find, load
from metaadamw_bench.names import DATA_SETS, unknown

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


def data_set_names() -> list[str]:
    """Names of all data sets."""
    return list(DATA_SETS)


def get_data_set(name: str) -> DataSet[Any]:
    """Import a data set's file and return its description.

    Raises:
        ValueError: no data set has this name.
    """
    if name not in DATA_SETS:
        raise ValueError(f"data set: {unknown(name, DATA_SETS)}")
    data_set: DataSet[Any] = importlib.import_module(f"{__name__}.{name}").DATA_SET
    return data_set
