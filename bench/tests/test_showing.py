"""Nothing of what a command shows is lost on a narrow terminal."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from metaadamw_bench import cli, doctor, watch
from metaadamw_bench.ablations import ABLATIONS
from metaadamw_bench.arms import ARMS
from metaadamw_bench.showing import described, wrapping_table
from metaadamw_bench.tasks import get_task, task_names

WIDTHS = [60, 72, 80, 100, 200]


@pytest.fixture(params=WIDTHS)
def shown(request, capsys, monkeypatch):
    def call(*words):
        monkeypatch.setenv("COLUMNS", str(request.param))
        with pytest.raises(SystemExit) as exit_info:
            cli.main(list(map(str, words)))
        output = capsys.readouterr()
        assert (exit_info.value.code or 0) == 0, output.err
        assert max(map(len, output.out.splitlines())) <= request.param
        assert "…" not in output.out
        return output.out

    return call


def words_of(text):
    return " ".join(text.split())


def test_arms_and_ablations_are_shown_whole(shown):
    out = words_of(shown("arms"))
    for arm in ARMS.values():
        assert words_of(f"{arm.name} {arm.title} {arm.description}") in out
    for ablation in ABLATIONS.values():
        row = f"{ablation.name} {ablation.section}: {ablation.configuration}"
        assert words_of(row) in out


def test_tasks_are_shown_whole(shown):
    out = words_of(shown("tasks"))
    for task in map(get_task, task_names()):
        assert words_of(f"{task.name} {task.title} {task.data} {task.metric.name}: ") in out


def test_doctor_is_shown_whole(shown, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "cpu_name", lambda: "A Processor With A Very Long Name " * 3)
    # Not a word break in sight: a path is broken wherever the line ends.
    missing = tmp_path / ("data" * 30)
    out = shown("doctor", "--no-cost", "--data-dir", missing)
    assert "".join(str(missing).split()) in "".join(out.split())
    assert words_of("A Processor With A Very Long Name " * 3) in words_of(out)
    for package, needed_for in doctor._PACKAGES.items():
        assert re.search(rf"^{package} .*{needed_for}", out, re.MULTILINE)


def test_costs_are_shown_whole(shown, tmp_path, monkeypatch):
    numbers = ["1234.5", "23456", "3456.7", "500", "4567.8"]
    monkeypatch.setattr(doctor, "_cost", lambda *_: numbers)
    out = shown("doctor", "--task", "digits", "--data-dir", tmp_path)
    for arm in doctor._ARMS:
        assert re.search(rf"^{arm} +{' +'.join(numbers)} *$", out, re.MULTILINE)


WORDS = st.lists(st.text("abcß_-/", min_size=1, max_size=90), min_size=1, max_size=12)


@given(st.sampled_from([30, *WIDTHS]), WORDS, WORDS)
def test_no_letter_is_lost(width, title, description):
    file = io.StringIO()
    console = Console(file=file, width=width)
    console.print(described("name", " ".join(title), " ".join(description)))
    assert "".join(file.getvalue().split()) == "name" + "".join(title + description)

    file.truncate(0)
    table = wrapping_table("a", "b", "c", title="t")
    table.add_row("1", " ".join(title), " ".join(description))
    console.print(table)
    rest = file.getvalue()
    for letter in "abcß_-/":
        heads = "abc".count(letter)
        assert rest.count(letter) - heads == " ".join(title + description).count(letter)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_watched_run_shows_every_group_whole(width):
    factors = {
        "attention.shallow.weight": (1.2, 0.9),
        "embedding.middle.weight": (0.8, 1.1),
        "a_name_that_is_much_longer_than_any_line_of_a_terminal" * 2: (0.7654, 1.0123),
    }
    file = io.StringIO()
    Console(file=file, width=width).print(watch._bars(factors))
    shown = file.getvalue()
    assert "…" not in shown
    for alpha, beta in factors.values():
        assert re.search(rf"{alpha:.4f}.*{beta:.4f}", shown)
    names = "".join(line.strip().split("  ")[0] for line in shown.splitlines()[1:])
    assert names == "".join(factors)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_demo_is_shown_whole(width, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    words = ("demo", "--task", "digits", "--seeds", "2", "--steps", "2", "--out", str(tmp_path))
    with pytest.raises(SystemExit):
        cli.main(words)
    out = capsys.readouterr().out
    assert "…" not in out
    for expected in ("optimizer", "validation", "minus", "seconds", "step()", "better)"):
        assert expected in out
