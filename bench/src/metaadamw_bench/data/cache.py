"""The user's cache directory, and results that are kept there because making them takes a while."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["CACHE_VARIABLE", "cache_directory", "cached"]

CACHE_VARIABLE = "METAADAMW_CACHE"
Result = TypeVar("Result")


def cache_directory() -> Path:
    """``METAADAMW_CACHE``, or the place where this operating system keeps caches.

    A user without a home directory, as in a container, has one among the temporary files.
    """
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own)
    try:
        return _place_for_caches() / "metaadamw"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"metaadamw-{os.getuid()}"


def _place_for_caches() -> Path:
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base)


def cached(name: str, ingredients: Sequence[str], make: Callable[[], Result]) -> Result:
    """Return ``make()``, or what it returned when it was last called with these ingredients.

    The result consists of tensors, strings, numbers and containers of them. A cache that cannot
    be written or has been damaged costs time and nothing else.

    Args:
        name: beginning of the file's name.
        ingredients: what the result depends on: checksums of files, a version of the code.
        make: makes the result.
    """
    key = hashlib.sha256("\n".join(ingredients).encode()).hexdigest()
    path = cache_directory() / "prepared" / f"{name}-{key[:16]}.pt"
    kept = _read(path)
    if kept is not None:
        return kept  # type: ignore[no-any-return]
    result = make()
    _write(path, result)
    return result


def _read(path: Path) -> Any:
    """The result in a file, None if there is none or its checksum is wrong."""
    import torch  # not before: where the cache is, and what is in it, does not need it

    try:
        data = path.read_bytes()
    except OSError:
        return None
    checksum, payload = data[:32], memoryview(data)[32:]
    if hashlib.sha256(payload).digest() != checksum:
        return None
    return torch.load(io.BytesIO(payload), weights_only=True)


def _write(path: Path, result: object) -> None:
    import torch

    buffer = io.BytesIO()
    torch.save(result, buffer)
    payload = buffer.getbuffer()
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as stream:
            temporary = Path(stream.name)
            stream.write(hashlib.sha256(payload).digest())
            stream.write(payload)
        temporary.replace(path)
    except OSError:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
