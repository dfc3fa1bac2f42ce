import errno
import hashlib
import http.server
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from metaadamw_bench import cli
from metaadamw_bench.data import DataError, fetch, find, load
from metaadamw_bench.data.files import DataSet, File, Layout

CONTENT = bytes(range(256)) * 4000


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT as /file; the server's settings say how badly."""

    def do_GET(self):
        server = self.server
        server.ranges.append(self.headers.get("Range"))
        body, start = server.content, 0
        if self.path != "/file":
            self.send_error(404)
            return
        if server.resumes and (asked := self.headers.get("Range")):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start : server.breaks_at])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content, server.resumes, server.breaks_at, server.ranges = CONTENT, True, None, []
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def data_set(server, path="file"):
    digest = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
    url = f"http://127.0.0.1:{server.server_port}/{path}"
    file = File("sub/content.bin", digest, url)
    return DataSet("toy", (Layout("published", (file,), lambda paths: paths[0].read_bytes()),))


def files_in(directory):
    return sorted(path.name for path in directory.rglob("*") if path.is_file())


def test_fetches_and_keeps(server, tmp_path):
    seen = []
    (path,) = fetch(data_set(server), tmp_path, lambda *told: seen.append(told))
    assert path == tmp_path / "toy" / "sub" / "content.bin"
    assert path.read_bytes() == CONTENT
    assert files_in(tmp_path) == ["content.bin"]
    assert seen[-1] == ("content.bin", len(CONTENT), len(CONTENT))
    fetch(data_set(server), tmp_path)
    assert server.ranges == [None]


def test_load_fetches_into_the_cache(server, tmp_path, monkeypatch):
    monkeypatch.setenv("METAADAMW_CACHE", str(tmp_path))
    monkeypatch.delenv("METAADAMW_DATA", raising=False)
    assert find(data_set(server)) is None
    assert load(data_set(server)) == CONTENT
    assert find(data_set(server)).paths == (tmp_path / "data" / "toy" / "sub" / "content.bin",)


def test_goes_on_where_the_connection_broke(server, tmp_path):
    server.breaks_at = 700_000
    with pytest.raises(DataError, match="broke after 700000 of 1024000 bytes; run again to resume"):
        fetch(data_set(server), tmp_path)
    assert files_in(tmp_path) == ["content.bin.part"]
    server.breaks_at = None
    (path,) = fetch(data_set(server), tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=700000-"]


def test_server_that_cannot_resume(server, tmp_path):
    server.breaks_at = 700_000
    with pytest.raises(DataError, match="run again"):
        fetch(data_set(server), tmp_path)
    server.breaks_at, server.resumes = None, False
    (path,) = fetch(data_set(server), tmp_path)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("content", [CONTENT[:-1] + b"x", CONTENT[:1000], b"<html>sorry</html>"])
def test_wrong_content_is_named_and_not_kept(server, tmp_path, content):
    server.content = content
    with pytest.raises(DataError, match=r"content\.bin\.part is damaged or another file: sha256"):
        fetch(data_set(server), tmp_path)
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("beginning", [b"of another file", CONTENT[:500] + CONTENT])
def test_wrong_beginning_is_dropped(server, tmp_path, beginning):
    part = tmp_path / "toy" / "sub" / "content.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(beginning)
    (path,) = fetch(data_set(server), tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.ranges == [f"bytes={len(beginning)}-", None]


def test_complete_part_needs_no_download(server, tmp_path):
    part = tmp_path / "toy" / "sub" / "content.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT)
    (path,) = fetch(data_set(server), tmp_path)
    assert path.read_bytes() == CONTENT


def test_offline_says_what_to_do(server, tmp_path):
    toy = data_set(server)
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError) as caught:
        fetch(toy, tmp_path)
    message = str(caught.value)
    assert "toy: http://127.0.0.1" in message
    assert "--data-dir or METAADAMW_DATA" in message
    assert "\n" not in message


def test_fetch_makes_the_directory_and_completes_what_is_in_it(server, tmp_path, monkeypatch):
    (content,) = data_set(server).published.files
    files = (content, replace(content, path="other.bin"))
    toy = DataSet("toy", (Layout("published", files, lambda paths: paths),))
    monkeypatch.setattr("metaadamw_bench.commands.data.get_data_set", lambda name: toy)
    words = ["data", "fetch", "etth1", "--data-dir", str(tmp_path / "new")]
    for _ in range(2):
        with pytest.raises(SystemExit) as done:
            cli.main(words)
        assert done.value.code == 0
        assert files_in(tmp_path) == ["content.bin", "other.bin"]
        (tmp_path / "new" / "toy" / "other.bin").unlink()  # as an interruption between the two
    assert server.ranges == [None] * 3


def test_what_answers_without_being_a_web_server(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer():
            connection, _ = listening.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-hello\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/file"
        toy = DataSet("toy", (Layout("published", (File("f", "sha256:0", url),), list),))
        with pytest.raises(DataError, match=r"what answers is no web server \(BadStatusLine\)"):
            fetch(toy, tmp_path)


def test_missing_on_the_server(server, tmp_path):
    with pytest.raises(DataError, match="404"):
        fetch(data_set(server, "elsewhere"), tmp_path)


def test_full_disk_leaves_what_is_whole(server, tmp_path, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    kept = tmp_path / "other"
    kept.write_bytes(b"earlier result")
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(DataError, match="No space left on device"):
        fetch(data_set(server), tmp_path)
    monkeypatch.undo()
    assert files_in(tmp_path) == ["other"]


def test_damaged_file_is_not_overwritten_silently(server, tmp_path):
    path = tmp_path / "toy" / "sub" / "content.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[:100])
    with pytest.raises(DataError, match="damaged or another file"):
        fetch(data_set(server), tmp_path)
    assert server.ranges == []
