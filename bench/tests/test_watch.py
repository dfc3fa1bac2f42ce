"""Watching a run directory, also while it is being written."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path
from typing import Any

import pytest
from bench.tests.running import command, environment, metaadamw
from rich.console import Console

from metaadamw_bench.cli import main
from metaadamw_bench.watch import bar, draw, look, sparks

SETTINGS = ("--set", "learning.every=3", "--set", 'modulator.init="xavier"')


def text(drawn: Any) -> str:
    file = io.StringIO()
    Console(file=file, width=100).print(drawn)
    return file.getvalue()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run, and what a process showed that watched it from before its beginning to its end."""
    directory = tmp_path_factory.mktemp("watch") / "run"
    watching = subprocess.Popen(
        command("watch", directory), env=environment(), stdout=subprocess.PIPE, text=True
    )
    done = metaadamw("run", "digits", "--epochs", 2, "--out", directory, *SETTINGS, "-q")
    assert done.returncode == 0, done.stderr
    shown, _ = watching.communicate(timeout=60)
    assert watching.returncode == 0
    return directory, shown


def test_a_run_is_watched_to_its_end(run: tuple[Path, str]) -> None:
    directory, shown = run
    once = metaadamw("watch", directory, "--once").stdout
    assert once.rstrip() in shown
    assert "digits, metaadamw, seed 0   finished, step 18 of at most 18" in once
    for words in ("training loss", "validation metric", "meta-updates", "loss decrease"):
        assert words in once
    assert all(f" {group} " in once for group in look(directory).factors)


def test_what_is_half_written_is_left_out(run: tuple[Path, str], tmp_path: Path) -> None:
    for name in ("config.json", "metrics.jsonl", "modulation.csv"):
        tmp_path.joinpath(name).write_bytes((run[0] / name).read_bytes())
    whole = look(run[0])
    assert whole is not None
    for name, torn in (("metrics.jsonl", '{"kind": "tra'), ("modulation.csv", "19,0.9")):
        with tmp_path.joinpath(name).open("a") as file:
            file.write(torn)
    sight = look(tmp_path)
    assert sight is not None
    assert (sight.status, sight.step) == ("running", 18)
    assert (sight.losses, sight.factors) == (whole.losses, whole.factors)
    last_row = (run[0] / "modulation.csv").read_text().splitlines()[-1]
    shown = [float(number) for pair in sight.factors.values() for number in pair]
    assert shown == [float(number) for number in last_row.split(",")[1:]]


def test_a_run_that_has_just_begun(run: tuple[Path, str], tmp_path: Path) -> None:
    tmp_path.joinpath("config.json").write_bytes((run[0] / "config.json").read_bytes())
    sight = look(tmp_path)
    assert sight is not None
    assert "running, step 0 of at most 18" in text(draw(sight))
    tmp_path.joinpath("modulation.csv").write_text("step,a/alpha,a/beta\n")
    assert look(tmp_path) == sight


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "{}"),
        ("metrics.jsonl", "none\n"),
        ("modulation.csv", "step,a/alpha\n1\n"),
        ("summary.json", '{"state": 1}'),
    ],
)
def test_damaged_files(
    name: str, content: str, run: tuple[Path, str], tmp_path: Path, capsys: Any
) -> None:
    tmp_path.joinpath("config.json").write_bytes((run[0] / "config.json").read_bytes())
    tmp_path.joinpath(name).write_text(content)
    with pytest.raises(SystemExit) as exit_info:
        main(["watch", str(tmp_path), "--once"])
    assert exit_info.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith(f"metaadamw: {tmp_path} holds damaged or other files (")
    assert said.count("\n") == 1


def test_no_run(tmp_path: Path) -> None:
    assert look(tmp_path) is None
    refused = metaadamw("watch", tmp_path, "--once")
    assert refused.returncode == 1
    assert refused.stderr == f"metaadamw: {tmp_path} holds no run\n"


@pytest.mark.parametrize(
    ("value", "drawn"),
    [
        (1.0, "      │      "),
        (1.5, "      │██████"),
        (1.25, "      │███   "),
        (0.5, "██████│      "),
        (0.9, "     █│      "),
    ],
)
def test_bars(value: float, drawn: str) -> None:
    assert bar(value, 0.5).plain == drawn
    assert bar(1.0, 0.0).plain == "      │      "


def test_sparks() -> None:
    assert sparks([0.0, 7.0, 3.0, float("nan"), 1.0]) == "▁█▄ ▂"
    assert sparks([2.0, 2.0]) == "▁▁"
    assert sparks([]) == ""
