"""Names of directories with bytes that are no text, wherever a command takes one."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from bench.tests.report.synthetic import change_json, write_run
from bench.tests.running import metaadamw
from hypothesis import given
from hypothesis import strategies as st

from metaadamw_bench import cli
from metaadamw_bench.config import RunRequest
from metaadamw_bench.printable import ENCODING_ERRORS, is_text, printable, shell_command
from metaadamw_bench.report import write_report
from metaadamw_bench.report.commands import report_command, run_commands
from metaadamw_bench.report.runs import read_runs, shown
from metaadamw_bench.run_directory import RunDirectory
from metaadamw_bench.runs import RunOptions, execute

NAMES = [b"caf\xe9", b"\xff\xfe", b"\xe9t\xe9 [x] 'y'", b"\xc3\xa9\xe9", b"a\xe9\\b", b"\x80$(z)"]

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="other systems refuse such names by themselves"
)


def named(name: bytes) -> str:
    return os.fsdecode(name)


@pytest.fixture(params=NAMES, ids=ascii)
def odd(request, tmp_path):
    place = tmp_path / named(request.param)
    place.mkdir()
    return place


@given(st.binary(max_size=20))
def test_what_is_shown_is_text_and_tells_every_byte(name):
    shown = printable(os.fsdecode(name))
    assert is_text(shown)
    assert shown == name.decode("utf-8", "backslashreplace")
    assert os.fsdecode(name).encode("utf-8", ENCODING_ERRORS) == shown.encode()


@given(st.text(st.characters(), max_size=20))
def test_text_stays_as_it_is_and_other_surrogates_are_shown(text):
    assert is_text(printable(text))
    if is_text(text):
        assert printable(text) == text
    assert text.encode("utf-8", ENCODING_ERRORS) == printable(text).encode()
    assert is_text(shell_command([text]))


def test_what_an_encoding_does_not_have_is_a_question_mark():
    assert "aα\udce9b".encode("ascii", ENCODING_ERRORS) == rb"a?\xe9b"


@pytest.mark.parametrize("name", [*NAMES, b"plain", b"with space", "α'".encode()], ids=ascii)
def test_a_shell_reads_a_command_back(name):
    code = "import sys; print(ascii(sys.argv[1:]))"
    command = shell_command([sys.executable, "-c", code, named(name)])
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ascii([named(name)])


def write_runs(root: Path) -> None:
    for arm in ("adamw", "metaadamw"):
        for seed in range(2):
            write_run(root, "etth1", arm, seed)
    unfinished = write_run(root, "imdb", "adamw", 3)
    (unfinished / "summary.json").unlink()
    failed = write_run(root, "imdb", "adamw", 4)
    error = f"OSError: no space left on device: '{root}/{named(NAMES[0])}'"
    change_json(failed / "summary.json", status="failed", error=error)


def texts(out: Path) -> dict[str, str]:
    assert {path.name for path in out.iterdir()} == {
        *("figures", "report.html", "report.md", "statistics.json")
    }
    names = ("report.html", "report.md", "statistics.json")
    return {name: (out / name).read_text(encoding="utf-8") for name in names}


@pytest.mark.parametrize("place", ["root", "above the root", "below the root", "out"])
@pytest.mark.parametrize("name", NAMES[:2], ids=ascii)
def test_a_report(name, place, tmp_path):
    odd = tmp_path / named(name)
    root, runs, out = {
        "root": (odd, odd, tmp_path / "out"),
        "above the root": (odd / "runs", odd / "runs", tmp_path / "out"),
        "below the root": (tmp_path / "runs", tmp_path / "runs" / odd.name, tmp_path / "out"),
        "out": (tmp_path / "runs", tmp_path / "runs", odd / "out"),
    }[place]
    write_runs(runs)
    write_report([root], out)
    written = texts(out)
    content = json.loads(written["statistics.json"])
    reasons = [entry["reason"] for entry in content["left_out"]]
    assert [reason.split(":")[0] for reason in reasons] == ["unfinished", "failed"]
    directories = [
        run["directory"]
        for cell in content["settings"]["clean-small"]["cells"]
        for run in cell["runs"]
    ]
    assert len(directories) == 4
    assert all(map(is_text, directories))
    named_so = place in ("root", "below the root")
    assert all((printable(odd.name) in directory) == named_so for directory in directories)
    assert r"caf\xe9" in reasons[1]


def test_the_commands_of_a_report_name_the_directory(odd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(odd, "etth1", "adamw", 0)
    (run,), _ = read_runs([odd])
    commands = [*run_commands([run]), report_command([shown(odd)])]
    for command in commands:
        assert is_text(command)
        code = f"metaadamw() {{ printf '%s\\n' \"$@\"; }}; {command}"
        done = subprocess.run(["bash", "-c", code], capture_output=True, check=True)
        assert os.fsencode(odd.name) in done.stdout.splitlines()


@pytest.mark.parametrize("field", ["task", "arm", "ablation"])
def test_a_run_whose_own_names_are_no_text_is_left_out(field, tmp_path):
    write_runs(tmp_path / "runs")
    broken = write_run(tmp_path / "runs", "digits", "adamw", 0)
    for name in ("config.json", "summary.json"):
        change_json(broken / name, **{field: "caf\ud800"})
    write_report([tmp_path / "runs"], tmp_path / "out")
    content = json.loads(texts(tmp_path / "out")["statistics.json"])
    assert sum(f"{field} is" in entry["reason"] for entry in content["left_out"]) == 1


def test_a_variant_that_is_no_rate_is_the_run_itself(tmp_path):
    place = f"clean-small/etth1/{named(b'adamw+lr-x' + NAMES[0])}/seed0"
    write_run(tmp_path / "runs", "etth1", "adamw", 0, place=place)
    write_report([tmp_path / "runs"], tmp_path / "out")
    content = json.loads(texts(tmp_path / "out")["statistics.json"])
    (cell,) = content["settings"]["clean-small"]["cells"]
    assert cell["ablation"] is None


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_the_command_report(encoding, tmp_path):
    odd = tmp_path / named(NAMES[0])
    write_run(odd / "runs", "etth1", "adamw", 0)
    words = ("report", odd / "runs", "--out", odd / "out")
    done = metaadamw(*words, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{printable(odd / 'out' / 'report.html')}\n"
    texts(odd / "out")


def test_a_directory_that_is_none(odd, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["report", str(odd / "none")])
    assert exit_info.value.code == 1
    assert capsys.readouterr().err == (
        f"metaadamw: {printable(odd / 'none')} is not a directory, nor a packed file (*.tar.xz)\n"
    )


def test_a_run_a_sweep_and_a_look_at_them(odd, capsys):
    def call(*words):
        with pytest.raises(SystemExit) as exit_info:
            cli.main(list(map(str, words)))
        output = capsys.readouterr()
        assert (exit_info.value.code or 0) == 0, output.err
        return output.out, output.err

    words = ("--max-steps", 10, "--arm", "adamw", "--out", odd / "run")
    out, _ = call("run", "digits", *words)
    assert printable(odd / "run") in out
    assert printable(odd) in call("run", "digits", *words)[0]
    call("watch", odd / "run", "--once")

    shown, told = call("sweep", "--tasks", "digits", "--arms", "adamw", "--out", odd, "--dry-run")
    assert f"runs in {printable(odd)}: " in told
    assert is_text(shown)
    if "'" not in odd.name:
        assert shlex.split(shown)[:3] == ["metaadamw", "run", "digits"]


def test_a_sweep_runs_there(tmp_path):
    odd = tmp_path / named(NAMES[0])
    words = ("--tasks", "digits", "--arms", "adamw", "--max-steps", 2, "--out", odd)
    done = metaadamw("sweep", *words)
    assert done.returncode == 0, done.stderr
    summary = odd / "clean-small" / "digits" / "adamw" / "seed0" / "summary.json"
    assert json.loads(summary.read_text(encoding="utf-8"))["status"] == "finished"


def test_what_went_wrong_is_kept_though_it_names_such_a_file(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device", named(NAMES[0]))

    monkeypatch.setattr("metaadamw_bench.trainer.Trainer.train_step", fail)
    with pytest.raises(OSError, match="No space left"):
        execute(
            RunRequest(task="digits", arm="adamw", max_steps=2), tmp_path, RunOptions(shown=False)
        )
    summary = RunDirectory(tmp_path).read_json("summary.json")
    assert summary["error"] == f"OSError: [Errno 28] No space left on device: {named(NAMES[0])!r}"
