"""Packs run directories into few compressed files, and unpacks them, to the last bit."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from metaadamw_bench.pack_file import SUFFIX, Pack, read_pack
from metaadamw_bench.places import shown
from metaadamw_bench.references import TUNING
from metaadamw_bench.run_directory import CONFIG, SUMMARY, named
from metaadamw_bench.stored_runs import RUN_FILES, packs_below, place_of, shown_roots

__all__ = ["By", "pack", "unpack"]

By = Literal["protocol", "task"]

_OTHER = "other"
_LABEL = re.compile(r"\w[\w-]*")


def pack(roots: Sequence[Path], out: Path, by: By = "protocol") -> list[Path]:
    """Pack all run directories at and below the given directories; nothing is deleted.

    Args:
        roots: directories, or packed files whose runs are packed again.
        out: a file to write, named ``*.tar.xz``; or a directory, for a file per task and protocol.
        by: "task" for a file per task, with all its protocols.

    Returns:
        The files written.

    Raises:
        ValueError: there are no runs, two differ under one name, ``out`` is another kind of
            archive, or a file that is there has runs that would be lost.
        OSError: a file cannot be read or written.
    """
    single = out.name.endswith(SUFFIX)
    if ".tar" in out.suffixes and not single:
        raise ValueError(f"out must be a directory or a file named *{SUFFIX}, got {out}")
    files: dict[str, tuple[str, bytes]] = {}
    for label, place, content in _files(roots, by):
        if files.setdefault(place, (label, content))[1] != content:
            raise ValueError(
                f"two different files are named {place}: remove one, or pack them apart"
            )
    if not files:
        raise ValueError(f"no run directory in {', '.join(map(str, roots))}")
    names = _names(roots)
    packs: dict[Path, dict[str, bytes]] = {}
    for place, (label, content) in files.items():
        packs.setdefault(out if single else out / f"{label}{SUFFIX}", {})[place] = content
    for path, content_of in packs.items():
        _refuse_to_lose(path, content_of)
    encoded = {path: Pack(names, content_of).encoded() for path, content_of in packs.items()}
    for path in sorted(encoded):
        _write(path, encoded[path])
    return sorted(encoded)


def unpack(file: Path, out: Path) -> list[Path]:
    """Write the files of a packed file again.

    Args:
        file: the packed file.
        out: the directory to write to, the one that runs were packed from to have them back where
            they were.

    Returns:
        The files, also those that were there already.

    Raises:
        ValueError: the packed file is damaged, or another file is in the way.
        OSError: a file cannot be written.
    """
    contents = {out / place: content for place, content in read_pack(file).files.items()}
    missing = []
    for path, content in contents.items():
        if not path.exists():
            missing.append(path)
        elif not path.is_file() or path.read_bytes() != content:
            raise ValueError(f"{path} is there, and is not as in {file}: nothing was unpacked")
    for path in missing:
        _write(path, contents[path])
    return list(contents)


def _names(roots: Sequence[Path]) -> dict[str, str]:
    """The directories that the runs come from, and the own name of each."""
    own = {shown(root): root.resolve().name for root in roots if root.is_dir()}
    packed = [read_pack(file).roots for root in roots for file in packs_below(root)]
    known = {root: name for names in (*packed, own) for root, name in names.items()}
    tuned = [shown(root) for root in roots if next(root.rglob(TUNING), None)]  # also without runs
    return {root: known[root] for root in dict.fromkeys([*shown_roots(roots), *tuned])}


def _files(roots: Sequence[Path], by: By) -> Iterator[tuple[str, str, bytes]]:
    """Every file of every run: what its packed file is called, its place, its content."""
    seen: set[Path] = set()
    for root in roots:
        packed = [read_pack(file).files for file in packs_below(root)]
        for files in (*packed, _on_disk(root, seen)):
            labels: dict[PurePosixPath, str] = {}
            for place, content in files.items():
                directory = PurePosixPath(place).parent
                if directory not in labels:
                    labels[directory] = _label(directory, files, by)
                yield labels[directory], place, content


def _on_disk(root: Path, seen: set[Path]) -> dict[str, bytes]:
    """The files of run directories, and what lies below those or says how an arm was tuned.

    Directories in ``seen`` are left out; it comes back with those of this root.
    """
    kept: set[Path] = set()
    files = {}
    for path, below, names in os.walk(root):  # of a file: nothing
        below.sort()
        directory = Path(path)
        if directory.parent not in kept and {*RUN_FILES, TUNING}.isdisjoint(names):
            continue
        kept.add(directory)
        if directory.resolve() in seen:
            continue
        seen.add(directory.resolve())
        place = PurePosixPath(place_of(directory, root))
        for name in sorted(names):
            files[str(place / name)] = (directory / name).read_bytes()
    return files


def _label(directory: PurePosixPath, files: Mapping[str, bytes], by: By) -> str:
    """Task and protocol of the run that a directory belongs to, as they stand in its files."""
    for parent in (directory, *directory.parents):
        for name in (CONFIG, SUMMARY, TUNING):
            try:
                content: dict[str, Any] = json.loads(files[str(parent / name)])
                words = [content["task"]]
                if by == "protocol":
                    words += [content["protocol"], content["size"]]
                label = "-".join(words)
            except (LookupError, TypeError, ValueError):
                continue
            if _LABEL.fullmatch(label):
                return label
    return _OTHER


def _refuse_to_lose(path: Path, new: Mapping[str, bytes]) -> None:
    """A packed file may be replaced by one that has all its files."""
    if path.exists():
        lost = sorted(read_pack(path).files.keys() - new.keys())
        if lost:
            raise ValueError(
                f"{path} is there and has {len(lost)} files that are not among those to pack, "
                f"for example {lost[0]}: pack {path} as well, or write elsewhere"
            )


def _write(path: Path, content: bytes) -> None:
    """Write a file in one go."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise named(error, path) from error
