"""What goes wrong ends in one line, and leaves what was there before as it was."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from bench.tests.running import numbers

from metaadamw_bench import cli
from metaadamw_bench.config import RunRequest
from metaadamw_bench.runs import Diverged, RunOptions, execute
from metaadamw_bench.tasks import Means, PreparedTask
from metaadamw_bench.trainer import Trainer

RUN = ["run", "digits", "--arm", "adamw", "--max-steps", "3", "--quiet"]
QUIET = RunOptions(shown=False)


@pytest.fixture
def metaadamw(capsys):
    """Run the command line in this process; exit code, standard output, standard error."""

    def call(*words):
        with pytest.raises(SystemExit) as exit_info:
            cli.main(list(map(str, words)))
        output = capsys.readouterr()
        return exit_info.value.code or 0, output.out, output.err

    return call


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["run", "mnist"], 2, "'mnist' is not one of etth1"),
        (["run", "digits", "--arm", "sgd"], 2, "'sgd' is not one of adamw"),
        (["run", "digits", "--seeds", "0"], 2, "No such option"),
        (["run", "digits", "--seed", "-1"], 2, "--seed"),
        (["run", "digits", "--size", "tiny"], 2, "--size"),
        (["run", "digits", "--size", "full"], 1, "size: 'full' is not one of small"),
        (["run", "digits", "--max-steps", "0"], 2, "--max-steps"),
        (["run", "digits", "--ablation", "gates"], 2, "'gates' is not one of"),
        (["run", "digits", "--set", "learning.every"], 2, "is not KEY=VALUE"),
        (["run", "digits", "--set", "learning.every=none"], 1, "every must be an integer"),
        (["run", "digits", "--device", "cuda:99"], 1, "'cuda:99' is not available"),
        (["run", "digits", "--arm", "muon"], 1, "muon does not fit"),
        (["run", "digits", "--seed", str(2**63)], 1, "seed must be in [0, 9223372036854775808)"),
        (["run", "digits", "--arm", "adamw", "--lr", "inf"], 1, "lr must be in [0.0, inf), got"),
        (["run", "digits", "--weight-decay", "inf"], 1, "weight_decay must be in [0.0, inf)"),
        (["run", "digits", "--arm", "adamw", "--mean-alpha", "0.5"], 2, "arm adamw does not read"),
        (["run", "digits", "--matched-to", "runs"], 2, "--matched-to: arm metaadamw does not"),
        (["run", "digits", "--arm", "adamw-matched", "--tuning", "t"], 2, "--tuning: arm"),
        (
            ["run", "digits", "--arm", "adamw-matched", "--matched-to", "r", "--mean-alpha", "1"],
            *(2, "--mean-alpha: not together with --matched-to"),
        ),
        (["run", "etth1", "--data-dir", "missing"], 1, "does not exist: missing"),
        (["sweep"], 2, "no tasks: name them"),
        (["sweep", "missing.toml"], 2, "missing.toml"),
        (["sweep", "--tasks", "digits,mnist", "--arms", "adamw"], 2, "'mnist' is not one of"),
        (["sweep", "--tasks", "digits", "--arms", "sgd"], 2, "'sgd' is not one of"),
        (["sweep", "--tasks", "digits", "--arms", "adamw", "--seeds", "a"], 2, "neither a seed"),
        (["sweep", "--tasks", "digits", "--arms", "adamw", "--seeds", "4-0"], 2, "counts down"),
        (["run", "digits", "--arm", "metaadamw-slow-mean", "--lr", "0"], 1, "lr must be above 0"),
        (["doctor", "--task", "mnist"], 2, "'mnist' is not one of"),
        (["doctor", "--device", "gpu"], 1, "'gpu'"),
        (["data", "fetch", "mnist"], 2, "'mnist' is not one of etth1"),
        (["report", "missing"], 1, "missing is not a directory"),
    ],
)
def test_one_line_says_what_is_wrong(words, code, message, metaadamw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, _, err = metaadamw(*words)
    assert found == code
    assert message in err
    assert err.startswith("metaadamw: ")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir()) or words[0] == "report"


def test_a_full_disk_is_named_and_earlier_results_stay(metaadamw, tmp_path, monkeypatch):
    done = tmp_path / "done"
    assert metaadamw(*RUN, "--out", done)[0] == 0
    before = {path: path.read_bytes() for path in done.iterdir()}
    real = os.fsync

    def full(descriptor):
        if os.fstat(descriptor).st_size > 1000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr("os.fsync", full)
    code, _, err = metaadamw(*RUN, "--seed", 1, "--out", tmp_path / "next")
    assert code == 1
    assert err.count("\n") == 1
    assert "No space left on device" in err
    assert "checkpoint.pt" in err
    assert {path: path.read_bytes() for path in done.iterdir()} == before
    assert not list((tmp_path / "next").glob(".*"))

    monkeypatch.undo()
    assert metaadamw(*RUN, "--seed", 1, "--out", tmp_path / "next")[0] == 0
    assert json.loads((tmp_path / "next" / "summary.json").read_text())["status"] == "finished"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_journal_on_a_full_disk(metaadamw, tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    code, _, err = metaadamw(*RUN, "--out", tmp_path)
    assert code == 1
    assert err.count("\n") == 1
    assert "metrics.jsonl" in err


def test_another_run_in_the_directory_is_left_alone(metaadamw, tmp_path):
    metaadamw(*RUN, "--out", tmp_path)
    before = numbers(tmp_path)
    code, _, err = metaadamw(*RUN, "--seed", 1, "--out", tmp_path)
    assert code == 1
    assert "holds a run with another seed (0, now 1)" in err
    assert numbers(tmp_path) == before


@pytest.mark.parametrize("damage", ["config.json damaged", "config.json lost", "summary alone"])
def test_a_run_that_cannot_be_told_is_left_alone(damage, metaadamw, tmp_path):
    metaadamw(*RUN, "--out", tmp_path)
    if damage == "config.json damaged":
        (tmp_path / "config.json").write_bytes(b"")
    else:
        (tmp_path / "config.json").unlink()
    if damage == "summary alone":
        (tmp_path / "checkpoint.pt").unlink()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    code, _, err = metaadamw(*RUN, "--seed", 1, "--out", tmp_path)
    assert (code, err.count("\n")) == (1, 1)
    assert "config.json is missing or damaged" in err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_run_that_diverges_says_so_in_its_summary(tmp_path, monkeypatch):
    request = RunRequest(task="digits", arm="adamw", max_steps=20)
    real = Trainer.train_step

    def train_step(self):
        loss = real(self)
        return float("nan") if self.step == 12 else loss

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", train_step)
        with pytest.raises(Diverged, match="the training loss is nan at step 12"):
            execute(request, tmp_path, QUIET)
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["status"] == "failed"
    assert found["error"] == "Diverged: the training loss is nan at step 12"
    assert found["best_epoch"] == 1
    assert execute(request, tmp_path, QUIET)["status"] == "finished"


def test_what_is_not_finite_is_null_in_json(tmp_path, monkeypatch):
    monkeypatch.setattr(
        PreparedTask, "means", lambda self, sums: Means(loss=1.0, metric=float("inf"))
    )
    execute(RunRequest(task="digits", arm="adamw", max_steps=2), tmp_path, QUIET)
    for name in ("summary.json", "metrics.jsonl"):
        text = (tmp_path / name).read_text()
        assert "Infinity" not in text
        assert "NaN" not in text
    assert json.loads((tmp_path / "summary.json").read_text())["best_metric"] is None


def test_a_run_without_a_finite_metric_is_asked_for_again(metaadamw, tmp_path):
    words = ("run", "pydoc", "--arm", "adamw", "--lr", "1e30", "--max-steps", 1, "--quiet")
    first = metaadamw(*words, "--out", tmp_path)
    assert first[0] == 0
    assert "bits per character not finite on validation" in first[1]
    again = metaadamw(*words, "--out", tmp_path)
    assert again[0] == 0
    assert again[1].startswith(first[1].removesuffix("\n"))
    assert "already done" in again[1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("epochs = 0", "epochs must be at least 1, got 0"),
        ("max_steps = -3", "max_steps must be at least 1, got -3"),
        ("threads = 0", "threads must be at least 1, got 0"),
        ("seeds = [0, -1]", "seeds must be at least 0, got -1"),
    ],
)
def test_a_sweep_file_is_held_to_what_flags_are(line, message, metaadamw, tmp_path):
    file = tmp_path / "sweep.toml"
    file.write_text(f'tasks = ["digits"]\narms = ["adamw"]\n{line}\n')
    code, out, err = metaadamw("sweep", file, "--out", tmp_path / "runs", "--dry-run")
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_directory_is_shown_by_its_own_name(metaadamw, tmp_path):
    root = tmp_path / "[red]x"
    words = ("--tasks", "digits", "--arms", "adamw", "--out", root, "--dry-run")
    assert f" runs in {root}: " in metaadamw("sweep", *words)[2]
    root.mkdir()
    told = metaadamw("doctor", "--no-cost", "--data-dir", root / "y")[1]
    assert str(root / "y") in "".join(told.replace("│", "").split())


def test_a_dry_run_says_which_runs_cannot_be_tried(metaadamw, tmp_path):
    code, out, err = metaadamw(
        *("sweep", "--tasks", "etth1,digits", "--arms", "adamw", "--dry-run"),
        *("--data-dir", tmp_path, "--out", tmp_path / "runs"),
    )
    assert code == 1
    assert out.startswith("metaadamw run digits ")
    assert out.count("\n") == 1
    assert "failed: etth1, 1 runs: " in err
    assert not list(tmp_path.iterdir())
