"""A download that goes on where it was interrupted."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

__all__ = ["Progress", "download"]

# ``progress(name, bytes so far, bytes in all if known)``
Progress = Callable[[str, int, "int | None"], None]

_TIMEOUT = 30.0
_BLOCK = 1 << 18
_RANGE_NOT_SATISFIABLE = 416
_PARTIAL_CONTENT = 206


def download(url: str, part: Path, progress: Progress | None = None) -> bool:
    """Download ``url`` into ``part``, whose content, if any, is taken as the file's beginning.

    Args:
        url: what to download.
        part: where to; after an interruption it holds what has arrived.
        progress: called as the data arrive.

    Returns:
        Whether the file's beginning was there already.

    Raises:
        OSError: no connection, a refusal, or fewer bytes than were promised.
    """
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "metaadamw"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != _RANGE_NOT_SATISFIABLE or not have:
            raise
        # The beginning is as long as the file, or longer: the checksum tells.
        return True
    except http.client.HTTPException as error:
        raise OSError(f"what answers is no web server ({type(error).__name__})") from error
    with response:
        resumed = have > 0 and response.status == _PARTIAL_CONTENT
        have = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        with part.open("ab" if resumed else "wb") as stream:
            try:
                while block := response.read(_BLOCK):
                    stream.write(block)
                    have += len(block)
                    if progress is not None:
                        progress(part.name.removesuffix(".part"), have, total)
            except http.client.HTTPException as error:
                raise OSError(f"the connection broke ({type(error).__name__})") from error
    if total is not None and have < total:
        raise OSError(f"the connection broke after {have} of {total} bytes")
    return resumed
