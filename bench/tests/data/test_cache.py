import sys

import pytest
import torch

from metaadamw_bench.data.cache import cache_directory, cached


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    monkeypatch.setenv("METAADAMW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Maker:
    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return {"words": ["a", "ü"], "tokens": torch.arange(3)}


def test_made_once(directory):
    make = Maker()
    first, second = (cached("toy", ["1"], make) for _ in range(2))
    assert make.calls == 1
    assert first["words"] == second["words"] == ["a", "ü"]
    assert torch.equal(first["tokens"], second["tokens"])
    assert len(list((directory / "prepared").iterdir())) == 1


def test_other_ingredients_are_made_anew():
    make = Maker()
    for ingredients in (["1"], ["2"], ["1", "2"]):
        cached("toy", ingredients, make)
    assert make.calls == 3


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"x" + data[1:]])
def test_damaged_result_is_made_anew(directory, damage):
    make = Maker()
    cached("toy", ["1"], make)
    (path,) = (directory / "prepared").iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert torch.equal(cached("toy", ["1"], make)["tokens"], torch.arange(3))
    assert make.calls == 2
    cached("toy", ["1"], make)
    assert make.calls == 2


def test_cache_that_cannot_be_written_costs_time_only(directory):
    directory.write_text("a file where the directory should be")
    make = Maker()
    assert cached("toy", ["1"], make)["words"] == ["a", "ü"]


@pytest.mark.skipif(sys.platform != "linux", reason="the place differs between systems")
def test_place(tmp_path, monkeypatch):
    monkeypatch.delenv("METAADAMW_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "metaadamw"


def test_a_user_without_a_home(tmp_path, monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("METAADAMW_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.home", nowhere)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cache_directory().parent == tmp_path
    assert cached("toy", ["1"], Maker())["words"] == ["a", "ü"]
