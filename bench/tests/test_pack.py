"""Packed runs are the runs: every file comes back, and whoever reads runs reads them alike."""

from __future__ import annotations

import io
import json
import lzma
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from bench.tests.report.synthetic import break_runs, change_json, write_json, write_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metaadamw_bench.cli import main
from metaadamw_bench.pack import pack, unpack
from metaadamw_bench.pack_file import read_pack, read_roots
from metaadamw_bench.replay import recorded_factors
from metaadamw_bench.report import write_report
from metaadamw_bench.run_directory import RunDirectory
from metaadamw_bench.stored_runs import find_runs, open_run, shown_roots
from metaadamw_bench.watch import look

COMMON = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def write_runs(root: Path) -> None:
    """Sweeps and single runs, tuning, and everything that can go wrong."""
    for task in ("etth1", "multi30k", "wikitext2", "imdb"):
        for arm in ("adamw", "metaadamw", "muon", "schedulefree"):
            for seed in range(2):
                write_run(root, task, arm, seed)
    write_run(root, "wikitext2", "adamw", 4)
    write_run(root, "imdb", "schedulefree", 2)
    for seed in range(2):
        write_run(root, "etth1", "metaadamw", seed, ablation="features-enhanced")
        write_run(root, "etth1", "adamw", seed, protocol="paper", size="full")
        write_run(root, "etth1", "adamw", seed, lr=4e-3, place=f"rates/4e-3/seed{seed}")
    tuning = "clean-small/etth1/adamw-tuned/tuning"
    write_run(root, "etth1", "adamw", 1000, place=f"{tuning}/lr0.001-wd0.01")
    what = {"task": "etth1", "protocol": "clean", "size": "small"}
    write_json(root / tuning / "tuning.json", what)
    break_runs(root)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("pack") / "runs"
    write_runs(root)
    return root


# Every file comes back ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("by", "names"),
    [
        (
            "protocol",
            [
                *("etth1-clean-small", "etth1-paper-full", "imdb-clean-small"),
                *("multi30k-clean-small", "wikitext2-clean-small"),
            ],
        ),
        ("task", ["etth1", "imdb", "multi30k", "wikitext2"]),
    ],
)
def test_a_file_per_task_and_protocol_gives_everything_back(runs, tmp_path, by, names):
    packs = pack([runs], tmp_path / "packed", by)
    assert [path.name for path in packs] == [f"{name}.tar.xz" for name in names]
    for path in packs:
        unpack(path, tmp_path / "back")
    assert files(tmp_path / "back" / "runs") == files(runs)


def test_a_packed_file_is_an_ordinary_archive(runs, tmp_path):
    (path,) = pack([runs], tmp_path / "all.tar.xz")
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    assert {m.name for m in members} == {f"runs/{name}" for name in files(runs)}
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}
    assert path.stat().st_size < sum(map(len, files(runs).values())) / 2


NAME = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1)
NAMES = NAME.filter(lambda name: name not in (".", "..") and len(name.encode()) < 200)


@COMMON
@given(st.dictionaries(st.tuples(NAMES, NAMES), st.binary(max_size=200), max_size=8), st.data())
def test_names_and_contents_of_any_kind(tmp_path_factory, content, data):
    place = tmp_path_factory.mktemp("any")
    for (directory, name), value in content.items():
        run = place / "runs" / data.draw(st.sampled_from(["a", "b" * 120])) / directory
        run.mkdir(parents=True, exist_ok=True)
        (run / "config.json").write_bytes(b"{")
        (run / name).write_bytes(value)
    if not content:
        (place / "runs").mkdir()
        with pytest.raises(ValueError, match="no run directory in"):
            pack([place / "runs"], place / "packed")
        return
    packed = [*pack([place / "runs"], place / "packed"), place / "packed" / "other.tar.xz"]
    assert len(set(packed)) == 1
    unpack(packed[0], place / "back")
    assert files(place / "back" / "runs") == files(place / "runs")


def test_a_name_that_is_no_unicode_comes_back(tmp_path):
    run = write_run(tmp_path / "runs", "etth1", "adamw", 0)
    name = os.fsdecode(b"caf\xe9")
    try:
        (run / name).write_bytes(b"x")
        run.rename(run.with_name(name))
    except OSError:
        pytest.skip("this file system takes Unicode only")
    (path,) = pack([tmp_path / "runs"], tmp_path / "packed")
    unpack(path, tmp_path / "back")
    assert files(tmp_path / "back" / "runs") == files(tmp_path / "runs")


def test_the_same_runs_give_the_same_bytes(runs, tmp_path, monkeypatch):
    other = tmp_path / "elsewhere" / "runs"
    for name in reversed(files(runs)):  # made in another order, at another time, by another umask
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_bytes((runs / name).read_bytes())
        os.utime(other / name, (1, 1))
        (other / name).chmod(0o600)
    first = files(pack([runs], tmp_path / "first")[0].parent)
    assert first == files(pack([other], tmp_path / "second")[0].parent)
    monkeypatch.chdir(other.parent)
    pack([Path("runs")], Path("third"))
    assert first == files(Path("third"))
    pack([tmp_path / "first"], tmp_path / "again")  # packed runs are runs
    assert first == files(tmp_path / "again")


# Readers ------------------------------------------------------------------------------------------


def report(roots, out, **options):
    write_report(roots, out, **options)
    return files(out)


@pytest.mark.parametrize("by", ["protocol", "task"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_report_does_not_tell_packed_runs_from_directories(
    runs, tmp_path, monkeypatch, by, inside
):
    monkeypatch.chdir(runs.parent if inside else tmp_path)
    pack([runs], tmp_path / "packed", by)
    pictures = inside and by == "task"  # they take most of the time
    expected = report([runs], tmp_path / "one", pictures=pictures)
    assert report([tmp_path / "packed"], tmp_path / "two", pictures=pictures) == expected
    each = sorted((tmp_path / "packed").iterdir(), reverse=True)
    assert report(each, tmp_path / "three", pictures=pictures) == expected
    assert b"rates/4e-3/seed0" in expected["report.md"]


@pytest.mark.parametrize(
    "roots",
    [["b", "a"], ["a", "b"], ["."], ["b/clean-small", "a"], ["a", "a/clean-small", "b"]],
    ids=" ".join,
)
def test_several_directories_keep_their_names_and_their_order(tmp_path, monkeypatch, roots):
    place = tmp_path / "place"
    for root in ("a", "b"):
        for seed in range(2):
            for arm in ("adamw", "metaadamw"):
                write_run(place / root, "etth1", arm, seed)  # in both: one counts
        write_run(place / root, "cifar10", "adamw", 0)
    change_json(place / "b/clean-small/etth1/adamw/seed1/config.json", weight_decay=0.5)
    monkeypatch.chdir(place)
    given = [Path(root) for root in roots]
    pack(given, tmp_path / "packed")
    expected = report(given, tmp_path / "one", pictures=False)
    assert report([tmp_path / "packed"], tmp_path / "two", pictures=False) == expected
    assert shown_roots([tmp_path / "packed"]) == roots
    for path in sorted((tmp_path / "packed").iterdir()):
        unpack(path, tmp_path / "elsewhere" / "place")
    monkeypatch.chdir(tmp_path / "elsewhere" / "place")
    assert report(given, tmp_path / "three", pictures=False) == expected


def test_some_packed_and_some_not_and_some_both(runs, tmp_path, monkeypatch):
    expected = report([runs], tmp_path / "one", pictures=False)
    mixed = tmp_path / "runs"
    shutil.copytree(runs, mixed)
    monkeypatch.chdir(tmp_path)
    pack([mixed], mixed)
    assert report([mixed], tmp_path / "both", pictures=False) == expected
    shutil.rmtree(mixed / "clean-small" / "etth1")
    shutil.rmtree(mixed / "rates")
    assert report([mixed], tmp_path / "some", pictures=False) == expected


def test_another_run_in_the_place_of_a_packed_one_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = write_run(Path("runs"), "etth1", "adamw", 0)
    pack([Path("runs")], Path("runs"))
    change_json(run / "config.json", key="another")
    report([Path("runs")], Path("out"), pictures=False)
    (left_out,) = json.loads(Path("out/statistics.json").read_text())["left_out"]
    assert "other settings than runs/clean-small/etth1/adamw/seed0" in left_out["reason"]


def test_single_runs_are_read_alike(tmp_path):
    directory = write_run(tmp_path / "runs", "etth1", "metaadamw", 1)
    write_run(tmp_path / "runs", "etth1", "metaadamw", 0)
    lines = (directory / "modulation.csv").read_text().splitlines()
    lines[1] = "1" + lines[1].removeprefix("2")  # replays need the first step
    (directory / "modulation.csv").write_text("\n".join(lines) + "\n")
    (path,) = pack([tmp_path / "runs"], tmp_path / "all.tar.xz")
    packed = path / directory.relative_to(tmp_path)
    for name in files(directory):
        assert open_run(packed).read_bytes(name) == (directory / name).read_bytes()
    assert open_run(packed).read_json("none.json") is None
    with pytest.raises(FileNotFoundError, match=r"seed1/none\.json"):
        open_run(packed).read_bytes("none.json")
    found = recorded_factors(packed / "modulation.csv", first=None)
    assert found == recorded_factors(directory / "modulation.csv", first=None)
    assert found["begins"][0] == 0


def test_a_packed_run_is_watched(tmp_path):
    run = tmp_path / "runs"
    config = {"task": "digits", "arm": "adamw", "seed": 0}
    RunDirectory(run).path.mkdir()
    RunDirectory(run).write_json("config.json", config)
    entry = {"kind": "train", "step": 3, "loss": 0.5}
    (run / "metrics.jsonl").write_text(json.dumps(entry) + "\n")
    (path,) = pack([run], tmp_path / "one.tar.xz")
    assert look(path) == look(path / "runs") == look(run)
    assert look(run).losses == [0.5]


def test_a_run_that_is_not_there_is_named_with_one_that_is(runs, tmp_path):
    (path,) = pack([runs], tmp_path / "all.tar.xz")
    near = path / "runs/clean-small/etth1/adamw/seed0"
    with pytest.raises(ValueError, match=f"no run runs/clean.*etth1/adamw/seed00; there is {near}"):
        open_run(near.with_name("seed00"))
    with pytest.raises(ValueError, match=r"all.tar.xz holds \d+ runs, but no run; there is"):
        open_run(path)


# Damage -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small packed file, whole."""
    place = tmp_path_factory.mktemp("small")
    write_run(place / "runs", "etth1", "adamw", 0)
    (path,) = pack([place / "runs"], place / "whole.tar.xz")
    return path


def refused(path: Path, out: Path) -> None:
    """All that read a packed file name it, and nothing is written."""
    for read in (
        read_pack,
        open_run,
        lambda p: unpack(p, out),
        lambda p: find_runs([p]),
        lambda p: find_runs([p.parent]),
        lambda p: write_report([p], out),
        lambda p: pack([p], out),
    ):
        with pytest.raises(ValueError, match=f"^{path} is damaged, or not made by"):
            read(path)
    assert not out.exists()


@COMMON
@given(st.data())
def test_a_file_that_is_cut_anywhere_is_named(small, tmp_path_factory, data):
    place, content = tmp_path_factory.mktemp("cut"), small.read_bytes()
    length = data.draw(st.integers(0, len(content) - 1))
    (place / "cut.tar.xz").write_bytes(content[:length])
    refused(place / "cut.tar.xz", place / "out")


@COMMON
@given(st.data())
def test_a_file_that_is_corrupt_anywhere_is_named(small, tmp_path_factory, data):
    place, content = tmp_path_factory.mktemp("corrupt"), bytearray(small.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    (place / "bad.tar.xz").write_bytes(content)
    refused(place / "bad.tar.xz", place / "out")


@COMMON
@given(st.data())
def test_an_archive_that_is_cut_before_it_was_compressed_is_named(small, tmp_path_factory, data):
    place, content = tmp_path_factory.mktemp("inner"), lzma.decompress(small.read_bytes())
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        last = archive.getmembers()[-1]
    end = last.offset_data + last.size
    (place / "cut.tar.xz").write_bytes(lzma.compress(content[: data.draw(st.integers(0, end - 1))]))
    refused(place / "cut.tar.xz", place / "out")


def archive(path: Path, members: list[tarfile.TarInfo], comment: object) -> Path:
    headers = {} if comment is None else {"comment": json.dumps(comment)}
    with tarfile.open(path, "w:xz", format=tarfile.PAX_FORMAT, pax_headers=headers) as file:
        for member in members:
            member.size = 2 if member.isfile() else 0
            file.addfile(member, io.BytesIO(b"{}"))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


OUTSIDE = {
    "parent": member("../runs/config.json"),
    "parent inside": member("runs/../../config.json"),
    "absolute": member("/runs/config.json"),
    "twice the slash": member("runs//config.json"),
    "dot": member("runs/./config.json"),
    "symlink": member("runs/config.json", tarfile.SYMTYPE, "/etc/passwd"),
    "hard link": member("runs/config.json", tarfile.LNKTYPE, "/etc/passwd"),
    "device": member("runs/config.json", tarfile.CHRTYPE),
    "pipe": member("runs/config.json", tarfile.FIFOTYPE),
    "directory": member("runs/config.json", tarfile.DIRTYPE),
    "another root": member("others/config.json"),
}


@pytest.mark.parametrize("kind", OUTSIDE)
@pytest.mark.parametrize("first", [True, False])
def test_what_would_leave_the_directory_is_refused_before_anything_is_written(
    tmp_path, kind, first
):
    members = [OUTSIDE[kind], member("runs/summary.json")][:: 1 if first else -1]
    comment = {"files": 2, "roots": {"runs": "runs"}}
    before = files(tmp_path)
    refused(archive(tmp_path / "bad.tar.xz", members, comment), tmp_path / "out")
    assert files(tmp_path).keys() - {"bad.tar.xz"} == before.keys()


@pytest.mark.parametrize(
    "comment",
    [
        *(None, 1, [], {}, {"files": 1}, {"roots": {"runs": "runs"}}),
        *({"files": 2, "roots": {"runs": "runs"}}, {"files": 0, "roots": {"runs": "runs"}}),
        *({"files": 1, "roots": ["runs"]}, {"files": 1, "roots": {"runs": 1}}),
        *({"files": 1, "roots": {}}, {"files": "1", "roots": {"runs": "runs"}}),
    ],
    ids=str,
)
def test_an_archive_of_others_is_named(tmp_path, comment):
    members = [member("runs/config.json")]
    refused(archive(tmp_path / "other.tar.xz", members, comment), tmp_path / "out")


def test_roots_are_read_without_the_rest(small):
    assert read_roots(small) == read_pack(small).roots == {"runs": "runs"}


# Nothing is lost ----------------------------------------------------------------------------------


def test_a_packed_file_is_not_replaced_by_one_with_less(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in range(2):
        write_run(Path("runs"), "etth1", "adamw", seed)
    (path,) = pack([Path("runs")], Path("packed"))
    before = path.read_bytes()
    shutil.rmtree("runs/clean-small/etth1/adamw/seed0")
    write_run(Path("runs"), "etth1", "adamw", 2)
    write_run(Path("runs"), "cifar10", "adamw", 0)
    with pytest.raises(ValueError, match=r"etth1-clean-small.tar.xz is there and has 4 files"):
        pack([Path("runs")], Path("packed"))
    assert files(Path("packed")) == {path.name: before}
    pack([Path("runs"), Path("packed")], Path("packed"))
    assert [run.path for run in find_runs([Path("packed")])] == [
        f"runs/clean-small/{place}"
        for place in ("cifar10/adamw/seed0", *(f"etth1/adamw/seed{seed}" for seed in range(3)))
    ]


def test_two_runs_under_one_name_are_refused(tmp_path):
    for place in ("one", "two"):
        run = write_run(tmp_path / place / "runs", "etth1", "adamw", 0)
        change_json(run / "config.json", key=place)
    with pytest.raises(ValueError, match=r"two different files are named runs/clean.*/config.json"):
        pack([tmp_path / "one/runs", tmp_path / "two/runs"], tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_a_file_that_is_in_the_way_is_left_and_named(small, tmp_path):
    whole = files(small.parent / "runs")
    unpack(small, tmp_path)
    changed = tmp_path / "runs" / next(iter(whole))
    unpack(small, tmp_path)  # all there: nothing to do
    changed.write_bytes(b"mine")
    missing = tmp_path / "runs" / [*whole][-1]
    missing.unlink()
    with pytest.raises(ValueError, match=f"{changed.name} is there, and is not as in"):
        unpack(small, tmp_path)
    assert changed.read_bytes() == b"mine"
    assert not missing.exists()


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tar", "x.tar.zst"])
def test_another_kind_of_archive_is_refused(runs, tmp_path, name):
    with pytest.raises(ValueError, match=r"out must be a directory or a file named \*\.tar\.xz"):
        pack([runs], tmp_path / name)


# The commands -------------------------------------------------------------------------------------


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


def test_commands(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(runs, "runs")
    assert run("pack", "runs", "--out", "results", "--by", "task") == 0
    assert capsys.readouterr().out.split()[0] == "results/etth1.tar.xz"
    assert run("report", "runs", "--out", "one", "--no-pictures") == 0
    shutil.rmtree("runs")
    assert run("report", "results", "--out", "two", "--no-pictures") == 0
    assert files(Path("one")) == files(Path("two"))
    assert run("unpack", *Path("results").iterdir()) == 0
    assert files(Path("runs")) == files(runs)
    Path("results/etth1.tar.xz").write_bytes(b"")
    capsys.readouterr()
    assert run("report", "results", "--out", "three") == 1
    assert "metaadamw: results/etth1.tar.xz is damaged" in capsys.readouterr().err
    assert run("pack", "nowhere", "--out", "packed") == 1
    assert "nowhere is not a directory, nor a packed file" in capsys.readouterr().err
    assert run("watch", "results/imdb.tar.xz/runs/none") == 1
    assert "holds 9 runs, but no run runs/none; there is" in capsys.readouterr().err
