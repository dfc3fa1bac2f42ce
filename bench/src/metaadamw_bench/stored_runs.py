"""Finds runs in directories and in packed files alike."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from metaadamw_bench.names import suggestion
from metaadamw_bench.pack_file import SUFFIX, Pack, PackedRun, is_pack, read_pack, read_roots
from metaadamw_bench.places import shown
from metaadamw_bench.printable import printable
from metaadamw_bench.run_directory import CONFIG, METRICS, SUMMARY, RunDirectory
from metaadamw_bench.run_files import RunFiles

__all__ = [
    "RUN_FILES",
    "StoredRun",
    "find_runs",
    "open_run",
    "packs_below",
    "place_of",
    "shown_roots",
]

RUN_FILES = (CONFIG, SUMMARY, METRICS)
"""A directory with one of these holds a run."""


class StoredRun(NamedTuple):
    """A run, and where it is.

    Attributes:
        files: its files.
        root: the directory it was found in, as a command names it.
        path: its directory from the root's own name on.
        shown: its directory as a command names it.
    """

    files: RunFiles
    root: str
    path: str
    shown: str


def find_runs(roots: Sequence[Path]) -> list[StoredRun]:
    """All runs at and below the given directories, and in packed files; a copy of a run but once.

    Raises:
        ValueError: a root is neither a directory nor a packed file, or a packed file is damaged.
    """
    order = {root: index for index, root in enumerate(shown_roots(roots))}
    found: dict[Path, list[StoredRun]] = {}
    # A run on the disk comes before its copy in a packed file.
    for source in (_in_directories, _in_packs):
        for run in (run for root in roots for run in source(root)):
            others = found.setdefault(run.files.path.resolve(), [])
            if not any(_same(run.files, other.files) for other in others):
                others.append(run)
    runs = [run for others in found.values() for run in others]
    return sorted(runs, key=lambda r: (order[r.root], PurePosixPath(r.shown).parts))


def shown_roots(roots: Sequence[Path]) -> list[str]:
    """The directories as commands name them; for packed runs, those that they come from."""
    names: dict[str, None] = {}
    for root in roots:
        packs = packs_below(root)
        if not packs or next(_in_directories(root), None) is not None:
            names[shown(root)] = None
        for pack in packs:
            names |= dict.fromkeys(read_roots(pack))
    return list(names)


def packs_below(root: Path) -> list[Path]:
    """The packed files of a root."""
    if is_pack(root):
        return [root]
    if not root.is_dir():
        beside = [path.name for path in root.parent.glob("*")]
        raise ValueError(
            f"{root} is not a directory, nor a packed file (*{SUFFIX})"
            f"{suggestion(root.name, beside)}"
        )
    return sorted(path for path in root.rglob(f"*{SUFFIX}") if is_pack(path))


def _in_directories(root: Path) -> Iterator[StoredRun]:
    if not root.is_dir():
        return
    own, name = shown(root), PurePosixPath(root.resolve().name)
    for directory in sorted({file.parent for part in RUN_FILES for file in root.rglob(part)}):
        path = printable((name / directory.relative_to(root)).as_posix())
        yield StoredRun(RunDirectory(directory), own, path, place_of(directory, root))


def place_of(directory: Path, root: Path) -> str:
    """A directory below a root as a command names it: relative to where it runs, if below that."""
    if directory.resolve().is_relative_to(Path.cwd().resolve()):
        return shown(directory)
    return (PurePosixPath(root.resolve().name) / directory.relative_to(root)).as_posix()


def _in_packs(root: Path) -> Iterator[StoredRun]:
    for path in packs_below(root):
        pack = read_pack(path)
        for run in _runs(pack):
            place = PurePosixPath(run.place).relative_to(run.root)
            name = PurePosixPath(pack.roots[run.root])
            yield StoredRun(run, run.root, str(name / place), run.place)


def _runs(pack: Pack) -> Iterator[PackedRun]:
    for directory, names in pack.directories.items():
        if not {*RUN_FILES}.isdisjoint(names):
            yield PackedRun(pack, directory)


def _same(run: RunFiles, other: RunFiles) -> bool:
    """Whether a run that shall lie in the same place as another is a copy of it."""
    if not isinstance(run, PackedRun):
        return True  # found twice on the disk
    with suppress(FileNotFoundError):
        return all(run.read_bytes(name) == other.read_bytes(name) for name in run.names())
    return False


def open_run(path: Path) -> RunFiles:
    """The run in a directory, or in a packed file: ``FILE/`` and its directory in there.

    Raises:
        ValueError: the packed file does not hold this run, or is damaged.
    """
    for file in (path, *path.parents):
        if is_pack(file):
            runs = {run.place: run for run in _runs(read_pack(file))}
            return _chosen(file, path.relative_to(file).as_posix(), runs)
    return RunDirectory(path)


def _chosen(file: Path, place: str, runs: dict[str, PackedRun]) -> PackedRun:
    if place == "." and len(runs) == 1:
        return next(iter(runs.values()))
    if place not in runs:
        nearest: Iterable[str] = difflib.get_close_matches(place, runs, n=1) or list(runs)[:1]
        instead = "".join(f"; there is {file / name}" for name in nearest)
        wanted = "" if place == "." else f" {place}"
        raise ValueError(f"{file} holds {len(runs)} runs, but no run{wanted}{instead}")
    return runs[place]
