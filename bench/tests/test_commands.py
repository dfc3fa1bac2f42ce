"""What the commands of the bench print and leave behind."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys

import pytest
from bench.tests.running import environment

from metaadamw_bench import cli
from metaadamw_bench.ablations import ABLATIONS
from metaadamw_bench.arms import ARMS
from metaadamw_bench.tasks import task_names


@pytest.fixture
def metaadamw(capsys):
    def call(*words):
        with pytest.raises(SystemExit) as exit_info:
            cli.main(list(map(str, words)))
        output = capsys.readouterr()
        assert (exit_info.value.code or 0) == 0, output.err
        return output.out

    return call


@pytest.mark.parametrize(
    "words",
    [["tasks"], ["arms"], ["run"], ["sweep"], ["report"], ["doctor"], ["data"], ["data", "fetch"]],
    ids=" ".join,
)
def test_help_teaches(words, metaadamw):
    out = metaadamw(*words, "--help")
    assert f"metaadamw {words[0]}" in out or words == ["data"]


def test_tasks_as_json_without_any_data(metaadamw, tmp_path):
    entries = json.loads(metaadamw("tasks", "--json", "--data-dir", tmp_path))
    assert {entry["name"] for entry in entries} == set(task_names())
    digits = next(entry for entry in entries if entry["name"] == "digits")
    assert (digits["protocol"], digits["size"]) == ("clean", "small")
    assert (digits["steps_per_epoch"], digits["parameters"]) == (9, 24058)
    etth1 = [entry for entry in entries if entry["name"] == "etth1"]
    assert len(etth1) == 4
    assert all("nothing in" in entry["error"] for entry in etth1)


def test_tables(metaadamw):
    shown = metaadamw("arms")
    assert all(name in shown for name in (*ARMS, *ABLATIONS))
    shown = metaadamw("tasks")
    assert all(name in shown for name in task_names())
    listed = json.loads(metaadamw("arms", "--json"))
    assert [arm["name"] for arm in listed["arms"]] == list(ARMS)


def test_inspect_knows_the_tasks(metaadamw):
    assert "convolution.shallow.weight" in metaadamw("inspect", "digits")


def test_run_leaves_its_files_where_a_sweep_would(metaadamw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = metaadamw("run", "digits", "--seed", 4, "--max-steps", 10, "--set", "learning.every=5")
    place = tmp_path / "runs/clean-small/digits/metaadamw/seed4"
    assert str(place.relative_to(tmp_path)) in out
    files = {path.name for path in place.iterdir()}
    assert files == {
        "checkpoint.pt",
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "modulation.csv",
        "seconds.jsonl",
        "summary.json",
    }
    summary = json.loads((place / "summary.json").read_text())
    assert summary["steps"] == 10
    assert summary["epochs"] == 2
    assert summary["meta_applied"] == 2
    assert set(summary["seconds"]) == {
        "train",
        "optimizer_step",
        "meta",
        "evaluation",
        "logging",
        "total",
    }
    assert 0 < summary["seconds"]["optimizer_step"] < summary["seconds"]["train"]
    assert summary["seconds"]["train"] < summary["seconds"]["total"]
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    kinds = [line["kind"] for line in lines]
    assert [kinds.count(kind) for kind in ("train", "evaluation", "meta")] == [10, 2, 2]
    rows = (place / "modulation.csv").read_text().splitlines()
    assert rows[0].startswith("step,")
    assert "/alpha," in rows[0]
    assert len(rows) == 11
    assert rows[-1].count(",") == rows[0].count(",")
    assert rows[1].split(",")[1] == "1"
    assert rows[-1].split(",")[1] != "1"


def test_dry_run_prints_commands_and_does_nothing(metaadamw, tmp_path):
    out = metaadamw(
        *("sweep", "--tasks", "digits", "--arms", "adamw,adamw-tuned", "--seeds", "0,2-3"),
        *("--out", tmp_path, "--dry-run"),
    )
    lines = out.splitlines()
    assert len(lines) == 3 + 8 + 3
    assert all(line.startswith("metaadamw run digits --out ") for line in lines)
    assert not list(tmp_path.iterdir())


def test_a_dry_run_prints_what_a_shell_reads_back(metaadamw, tmp_path):
    words = ("sweep", "--tasks", "digits", "--arms", "adamw", "--out", tmp_path / "my runs")
    (line,) = metaadamw(*words, "--dry-run").splitlines()
    assert str(tmp_path / "my runs/clean-small/digits/adamw/seed0") in shlex.split(line)


def test_doctor_says_what_is_here_and_what_it_costs(metaadamw, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    out = metaadamw("doctor", "--task", "digits", "--data-dir", tmp_path)
    for expected in ("torch", "cpu", "not here", "metaadamw-online", "run, min"):
        assert expected in out
    assert "run, min" not in metaadamw("doctor", "--no-cost", "--data-dir", tmp_path)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("metaadamw ru", "run"),
        ("metaadamw run wiki", "wikitext2"),
        ("metaadamw run --arm metaadamw-o", "metaadamw-online"),
    ],
)
def test_the_shell_completes(typed, offered):
    words = typed.split()
    done = subprocess.run(
        [sys.executable, "-m", "metaadamw_bench"],
        env=environment(
            _METAADAMW_COMPLETE="complete_bash", COMP_WORDS=typed, COMP_CWORD=str(len(words) - 1)
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert offered in done.stdout.split()


def test_report_reads_what_runs_have_left(metaadamw, tmp_path):
    for arm in ("adamw", "metaadamw-online"):
        words = ("run", "digits", "--arm", arm, "--max-steps", 10, "--quiet")
        metaadamw(*words, "--out", tmp_path / "runs" / arm)
    metaadamw("report", tmp_path / "runs", "--out", tmp_path / "report")
    assert os.path.getsize(tmp_path / "report" / "report.html") > 1000
