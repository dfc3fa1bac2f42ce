import hashlib

import pytest

from metaadamw_bench.data import DataError, data_set_names, find, get_data_set, load
from metaadamw_bench.data.files import DataSet, File, Layout


def digest(content):
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def read(paths):
    return [path.read_bytes() for path in paths]


TOY = DataSet(
    "toy",
    (
        Layout("two", (File("one", digest(b"1")), File("two", digest(b"2"))), read),
        Layout("packed", (File("packed", digest(b"12"), "http://127.0.0.1:9/packed"),), read),
    ),
)


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("METAADAMW_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("METAADAMW_DATA", raising=False)


def put(directory, **files):
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return directory


def test_every_form_in_the_directory_or_in_its_folder(tmp_path):
    put(tmp_path / "a", one=b"1", two=b"2")
    put(tmp_path / "b" / "toy", packed=b"12")
    assert load(TOY, tmp_path / "a") == [b"1", b"2"]
    assert load(TOY, tmp_path / "b") == [b"12"]


def test_variable_then_cache(tmp_path, monkeypatch):
    put(tmp_path / "cache" / "data" / "toy", packed=b"12")
    assert load(TOY) == [b"12"]
    monkeypatch.setenv("METAADAMW_DATA", str(put(tmp_path / "own", other=b"")))
    assert load(TOY) == [b"12"]
    put(tmp_path / "own" / "toy", one=b"1", two=b"2")
    assert load(TOY) == [b"1", b"2"]


def test_directory_that_was_asked_for_is_the_only_one(tmp_path, monkeypatch):
    put(tmp_path / "cache" / "data" / "toy", packed=b"12")
    empty = put(tmp_path / "empty")
    with pytest.raises(DataError, match=r"toy: nothing in .*empty; .*toy/one or toy/packed"):
        load(TOY, empty)


def test_missing_directory(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"the data directory does not exist: .*nowhere"):
        load(TOY, tmp_path / "nowhere")
    monkeypatch.setenv("METAADAMW_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"METAADAMW_DATA does not exist"):
        find(TOY)


def test_incomplete_form(tmp_path):
    with pytest.raises(DataError, match=r"toy: .*a lacks two$"):
        load(TOY, put(tmp_path / "a", one=b"1"))
    put(tmp_path / "a", packed=b"12")
    assert load(TOY, tmp_path / "a") == [b"12"]


@pytest.mark.parametrize("content", [b"", b"3", b"22"])
def test_empty_wrong_or_longer_file(tmp_path, content):
    with pytest.raises(DataError, match=r"a/two is damaged or another file: sha256 .*data fetch$"):
        load(TOY, put(tmp_path / "a", one=b"1", two=content))


def test_unreadable_content_is_an_error_of_the_data(tmp_path):
    def fail(paths):
        raise ValueError("no such column")

    broken = DataSet("toy", (Layout("", (File("one", digest(b"1")),), fail),))
    with pytest.raises(DataError, match=r"toy: .*a cannot be read: no such column"):
        load(broken, put(tmp_path / "a", one=b"1"))


def test_names():
    for name in data_set_names():
        found = get_data_set(name)
        assert found.name == name
        assert all(file.url.startswith("https://") for file in found.published.files)
    with pytest.raises(ValueError, match="'mnist' is not one of etth1, wikitext2"):
        get_data_set("mnist")
