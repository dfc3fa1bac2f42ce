"""Training frameworks: one module for each, which imports that framework and nothing else does."""

from __future__ import annotations

import importlib

__all__: list[str] = []


def require(package: str, extra: str) -> None:
    """Import ``package``, or say which extra brings it.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:  # it is there, something that it needs is not
            raise
        raise ModuleNotFoundError(
            f"{package} is not installed; pip install '.[{extra}]' in a clone of metaadamw",
            name=package,
        ) from None
