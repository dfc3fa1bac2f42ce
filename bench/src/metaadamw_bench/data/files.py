"""Where a data set's files are, and whether they are the ones that were published.

Every file has a known checksum, which is compared before the file is read: a truncated, damaged
or wrong file ends in a ``DataError`` that names it.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from metaadamw_bench.data.cache import cache_directory
from metaadamw_bench.data.download import Progress, download

__all__ = ["DATA_VARIABLE", "DataError", "DataSet", "File", "Found", "Layout"]

DATA_VARIABLE = "METAADAMW_DATA"
Content = TypeVar("Content")


class DataError(Exception):
    """Data are missing, damaged or cannot be fetched; the message says what to do."""


@dataclass(frozen=True)
class File:
    """A file of a data set.

    Attributes:
        path: relative to the data set's directory.
        digest: ``algorithm:hexadecimal``.
        url: where it can be downloaded.
    """

    path: str
    digest: str
    url: str | None = None


@dataclass(frozen=True)
class Layout(Generic[Content]):
    """One form in which a data set is passed around.

    Attributes:
        name: the form in a few words.
        files: its files.
        read: takes the files' paths in the same order and returns the content.
    """

    name: str
    files: tuple[File, ...]
    read: Callable[[Sequence[Path]], Content]


@dataclass(frozen=True)
class DataSet(Generic[Content]):
    """A data set in all the forms that can be read, whose content is the same.

    Attributes:
        name: name, and name of its directory.
        layouts: the forms, in the order in which they are looked for; that with URLs is the one
            that is downloaded.
    """

    name: str
    layouts: tuple[Layout[Content], ...]

    @property
    def published(self) -> Layout[Content]:
        """The form that can be downloaded."""
        return next(layout for layout in self.layouts if layout.files[0].url is not None)


@dataclass(frozen=True)
class Found(Generic[Content]):
    """A data set on this machine: its form, and its files in that form."""

    layout: Layout[Content]
    paths: tuple[Path, ...]


def find(
    data_set: DataSet[Content], data_dir: Path | None = None, *, to_complete: bool = False
) -> Found[Content] | None:
    """Look for a data set in ``data_dir``, or else in ``METAADAMW_DATA`` and in the cache.

    Args:
        data_set: the data set.
        data_dir: the only directory to look in.
        to_complete: what is missing will be fetched: ``data_dir`` may hold a part, or not exist.

    Returns:
        The first form of which every file is there, not yet checked; None if there is none.

    Raises:
        DataError: a directory that was asked for does not exist, or holds only some of the files.
    """
    variable = os.environ.get(DATA_VARIABLE)
    asked = data_dir or (Path(variable) if variable else None)
    if asked is not None and not asked.is_dir() and not (data_dir and to_complete):
        origin = "the data directory" if data_dir else DATA_VARIABLE
        raise DataError(f"{origin} does not exist: {asked}")
    cache = cache_directory() / "data"
    roots = [data_dir] if data_dir else [*([asked] if asked else []), cache]
    bases = [base for root in roots for base in (root / data_set.name, root)]
    for base in bases:
        for layout in data_set.layouts:
            paths = tuple(base / file.path for file in layout.files)
            if all(path.is_file() for path in paths):
                return Found(layout, paths)
    if not to_complete:
        _refuse_parts(data_set, [base for base in bases if cache not in base.parents])
    return None


def _refuse_parts(data_set: DataSet[Content], bases: Sequence[Path]) -> None:
    """Raise if a directory of the user's holds some files of a form, but not all."""
    for base in bases:
        for layout in data_set.layouts:
            missing = [file.path for file in layout.files if not (base / file.path).is_file()]
            if len(missing) < len(layout.files):
                raise DataError(f"{data_set.name}: {base} lacks {', '.join(missing)}")


def check(file: File, path: Path) -> None:
    """Raise ``DataError`` unless ``path`` has the checksum of ``file``."""
    algorithm, _, expected = file.digest.partition(":")
    try:
        with path.open("rb") as stream:
            # MD5 and SHA-1 against accidents only; nothing that is read can run code.
            hasher = hashlib.new(algorithm, usedforsecurity=False)
            while block := stream.read(1 << 20):
                hasher.update(block)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if hasher.hexdigest() != expected:
        raise DataError(
            f"{path} is damaged or another file: {algorithm} {hasher.hexdigest()[:12]}… instead "
            f"of {expected[:12]}…; delete it, then: metaadamw data fetch"
        )


def load(
    data_set: DataSet[Content], data_dir: Path | None = None, progress: Progress | None = None
) -> Content:
    """Find a data set, or download it; check every file; read it.

    Args:
        data_set: the data set.
        data_dir: the only directory to look in; by default ``METAADAMW_DATA``, the cache, and
            then the public source.
        progress: told about a download.

    Raises:
        DataError: it is not there, damaged, or cannot be downloaded.
    """
    found = find(data_set, data_dir)
    if found is None and data_dir is not None:
        forms = " or ".join(
            f"{data_set.name}/{layout.files[0].path}" for layout in data_set.layouts
        )
        raise DataError(f"{data_set.name}: nothing in {data_dir}; it would hold {forms}")
    if found is None:
        fetch(data_set, progress=progress)
        found = Found(data_set.published, _paths(data_set, None))
    for file, path in zip(found.layout.files, found.paths, strict=True):
        check(file, path)
    try:
        return found.layout.read(found.paths)
    except Exception as error:
        folder = found.paths[0].parent
        raise DataError(f"{data_set.name}: {folder} cannot be read: {error}") from error


def fetch(
    data_set: DataSet[Content], directory: Path | None = None, progress: Progress | None = None
) -> tuple[Path, ...]:
    """Download a data set in its published form; files that are there and whole are kept.

    Args:
        data_set: the data set.
        directory: a data directory, the cache by default.
        progress: told about each file.

    Returns:
        The paths of its files.

    Raises:
        DataError: a file cannot be downloaded; the message says what to do.
    """
    paths = _paths(data_set, directory)
    for file, path in zip(data_set.published.files, paths, strict=True):
        if path.is_file():
            check(file, path)
            continue
        assert file.url is not None, file.path
        # Beside its final place, and renamed once its checksum is right.
        part = path.with_name(path.name + ".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            resumed = download(file.url, part, progress)
            try:
                check(file, part)
            except DataError:
                part.unlink()
                if not resumed:
                    raise
                # The part may have been of another file; once more from the start.
                download(file.url, part, progress)
                check(file, part)
            os.replace(part, path)
        except OSError as error:
            raise DataError(
                f"{data_set.name}: {file.url} could not be downloaded to {path.parent}: {error}; "
                f"run again to resume, or put the files of {data_set.name} into a directory and "
                f"name it with --data-dir or {DATA_VARIABLE}"
            ) from error
    return paths


def _paths(data_set: DataSet[Content], directory: Path | None) -> tuple[Path, ...]:
    base = (directory or cache_directory() / "data") / data_set.name
    return tuple(base / file.path for file in data_set.published.files)


def read_text(path: Path) -> str:
    """A whole UTF-8 text file, unpacked if it is called ``.gz`` or ``.xz``, lines as they are."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    elif path.suffix == ".xz":
        data = lzma.decompress(data)
    return data.decode("utf-8")
