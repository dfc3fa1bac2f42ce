"""A packed file of runs: an ordinary ``tar.xz``; the same runs give the same bytes.

Its members are named as the run directories are shown, and its comment holds what a report says of
the directories that they were found in.
"""

from __future__ import annotations

import errno
import io
import json
import lzma
import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from metaadamw_bench.run_files import RunFiles

__all__ = ["SUFFIX", "Pack", "PackedRun", "is_pack", "read_pack", "read_roots"]

SUFFIX = ".tar.xz"

# The archive is text, which fills no words of four bytes.
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}]
_DAMAGE = (
    *(lzma.LZMAError, EOFError, tarfile.TarError),
    *(AttributeError, LookupError, TypeError, ValueError),  # of a comment that says something else
)


@dataclass(frozen=True)
class Pack:
    """The files of runs.

    Attributes:
        roots: the directories that they were found in, as a command names them, each with its own
            name; the first that holds a file is the file's.
        files: content by place, which begins with the root's shown name.
    """

    roots: Mapping[str, str]
    files: Mapping[str, bytes] = field(repr=False)

    @cached_property
    def directories(self) -> Mapping[str, Sequence[str]]:
        """The names of the files in each directory."""
        found: dict[str, list[str]] = {}
        for place in sorted(self.files, key=lambda place: PurePosixPath(place).parts):
            directory = PurePosixPath(place)
            found.setdefault(str(directory.parent), []).append(directory.name)
        return found

    def root_of(self, place: str) -> str:
        """The root of a file or directory.

        Raises:
            LookupError: there is none.
        """
        parents = {str(parent) for parent in PurePosixPath(place).parents} | {place}
        for root in self.roots:
            if root in parents:
                return root
        raise LookupError(f"{place} is in none of {', '.join(self.roots)}")

    def encoded(self) -> bytes:
        """The packed file."""
        comment = json.dumps({"files": len(self.files), "roots": self.roots})
        buffer = io.BytesIO()
        with tarfile.open(
            fileobj=buffer,
            mode="w",
            format=tarfile.PAX_FORMAT,
            encoding="utf-8",
            pax_headers={"comment": comment},
        ) as archive:
            # Files of the same name are alike, and take less space side by side.
            for place in sorted(self.files, key=lambda place: (PurePosixPath(place).name, place)):
                member = tarfile.TarInfo(place)  # no owner, no time
                member.size = len(self.files[place])
                archive.addfile(member, io.BytesIO(self.files[place]))
        return lzma.compress(buffer.getvalue(), check=lzma.CHECK_CRC64, filters=_FILTERS)


class PackedRun(RunFiles):
    """One run of a pack."""

    def __init__(self, pack: Pack, place: str) -> None:
        super().__init__(Path(place))
        self.pack, self.place = pack, place

    @property
    def root(self) -> str:
        """The directory that it was found in, as a command names it."""
        return self.pack.root_of(self.place)

    def names(self) -> Sequence[str]:
        """The names of its files."""
        return self.pack.directories[self.place]

    def read_bytes(self, name: str) -> bytes:
        """What is in a file."""
        try:
            return self.pack.files[str(PurePosixPath(self.place, name))]
        except KeyError:
            where = str(self.path / name)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), where) from None


def is_pack(path: Path) -> bool:
    """Whether a path names a packed file."""
    return path.name.endswith(SUFFIX) and path.is_file()


def read_pack(path: Path) -> Pack:
    """A packed file, checked to its end.

    Raises:
        ValueError: the file is damaged, incomplete, or none of ours.
        OSError: it cannot be read.
    """
    status = path.stat()
    try:
        return _checked(path.resolve(), status.st_mtime_ns, status.st_size)
    except _DAMAGE as error:
        raise _not_ours(path, error) from error


@lru_cache(maxsize=8)
def _checked(path: Path, *_: int) -> Pack:
    data = lzma.decompress(path.read_bytes(), format=lzma.FORMAT_XZ)
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:", encoding="utf-8") as archive:
        comment = _comment(archive)
        files = dict(_content(archive, member) for member in archive)
    if len(files) != comment["files"]:
        raise ValueError(f"{len(files)} of {comment['files']} files are there")
    pack = Pack(comment["roots"], files)
    for place in files:
        pack.root_of(place)
    return pack


def read_roots(path: Path) -> Mapping[str, str]:
    """The roots of a packed file alone, for which its beginning is enough."""
    try:
        with tarfile.open(path, "r:xz", encoding="utf-8") as archive:
            roots: dict[str, str] = _comment(archive)["roots"]
    except _DAMAGE as error:
        raise _not_ours(path, error) from error
    return roots


def _comment(archive: tarfile.TarFile) -> dict[str, Any]:
    if "comment" not in archive.pax_headers:
        raise ValueError("no comment")
    comment: dict[str, Any] = json.loads(archive.pax_headers["comment"])
    if not all(isinstance(name, str) for pair in comment["roots"].items() for name in pair):
        raise TypeError("roots are not names")
    return comment


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[str, bytes]:
    """Name and content of a member that is a plain file below the directory it is unpacked in."""
    path = Path(member.name)
    # Windows knows paths with a drive that are not absolute.
    outside = path.is_absolute() or path.drive or ".." in path.parts
    if outside or not member.isfile() or path.as_posix() != member.name:
        raise ValueError(f"{member.name!r} is no plain file below it")
    file = archive.extractfile(member)
    assert file is not None
    return member.name, file.read()


def _not_ours(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is damaged, or not made by metaadamw pack: {error}")
