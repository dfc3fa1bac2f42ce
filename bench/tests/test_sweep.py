"""Sweeps: the same summaries wherever runs are started, and nothing is done twice."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from bench.tests.running import metaadamw, numbers, summary

from metaadamw_bench import launch
from metaadamw_bench.config import RunRequest
from metaadamw_bench.places import run_place
from metaadamw_bench.references import References, fill_in
from metaadamw_bench.runs import RunOptions, execute
from metaadamw_bench.sweep import Sweep, plan, read_sweep
from metaadamw_bench.tasks import get_task

QUIET = RunOptions(shown=False)
SWEEP = Sweep(tasks=("digits",), arms=("adamw", "metaadamw-online"), seeds=(0, 1), max_steps=4)
WORDS = ["--tasks", "digits", "--arms", "adamw,metaadamw-online", "--seeds", "0-1"]


@pytest.fixture(scope="module")
def one_after_another(tmp_path_factory):
    root = tmp_path_factory.mktemp("sequence")
    for request in SWEEP.requests("digits"):
        execute(request, run_place(root, request), QUIET)
    return found(root)


def found(root: Path) -> dict[str, dict]:
    """Runs by directory, without the wall time."""
    return {
        str(path.parent.relative_to(root)): numbers(path.parent, checkpoint=False)
        for path in root.rglob("summary.json")
    }


@pytest.mark.parametrize("where", [["--jobs", 2], ["--ray", "local"]], ids=["jobs", "ray"])
def test_runs_are_the_same_wherever_they_are_started(where, tmp_path, one_after_another):
    if "--ray" in where:
        pytest.importorskip("ray")
    done = metaadamw("sweep", *WORDS, "--max-steps", 4, "--out", tmp_path, *where)
    assert done.returncode == 0, done.stderr
    assert found(tmp_path) == one_after_another
    assert set(one_after_another) == {
        f"clean-small/digits/{arm}/seed{seed}" for arm in SWEEP.arms for seed in SWEEP.seeds
    }
    assert not list(tmp_path.rglob("checkpoint.pt"))
    assert all(job.finished for job in plan(SWEEP, tmp_path, None).jobs.values())


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nobody_listens_is_told_at_once(scheme):
    pytest.importorskip("ray")
    with socket.socket() as unheard:  # bound, not listening: the port stays free of others
        unheard.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{unheard.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"no Ray cluster at '{address}'.*refused"):
            launch.ray_cluster(address).__enter__()


class Inside:
    """Starts runs in this process, and notes in which order."""

    def __init__(self, failing=()):
        self.started, self.failing = [], failing

    def __call__(self, words, threads):
        future = launch.Future()
        place = Path(words[words.index("--out") + 1])
        self.started.append(place)
        future.set_result("no luck" if place.name in self.failing else None)
        return future


def follow(jobs, start):
    commands = {place: job.command(None, keep_checkpoint=False) for place, job in jobs.items()}
    return {job.place: error for job, error in launch.run_all(jobs, commands, start)}


def test_one_failing_run_does_not_stop_the_others(tmp_path):
    jobs = plan(SWEEP, tmp_path, None).jobs
    ended = follow(jobs, Inside(failing=("seed1",)))
    assert list(ended.values()).count("no luck") == 2
    assert set(ended) == set(jobs)


def test_a_machine_that_breaks_down_does_not_stop_the_others(tmp_path):
    class Breaking(Inside):
        def __call__(self, words, threads):
            future = launch.Future()
            future.set_exception(RuntimeError("where it was started\nthe worker died"))
            return super().__call__(words, threads) if "0" in words else future

    jobs = plan(SWEEP, tmp_path, None).jobs
    ended = follow(jobs, Breaking())
    assert list(ended.values()).count("RuntimeError: the worker died") == 2
    assert list(ended.values()).count(None) == 2


def test_sigterm_ends_the_runs_of_a_sweep(tmp_path, monkeypatch):
    endless = tmp_path / "endless"
    endless.write_text(f"#!/bin/sh\ntouch {tmp_path}/begun\nexec sleep 600\n")
    endless.chmod(0o700)
    monkeypatch.setattr("sys.executable", str(endless))

    def unheeded(number, frame):
        raise AssertionError("nobody has taken the signal")

    ended = []

    def sweep():
        with launch.local_processes(1) as start:
            start(["run"], 1).add_done_callback(lambda run: ended.append(run.result()))
            while not (tmp_path / "begun").exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, unheeded)
    try:
        with pytest.raises(KeyboardInterrupt):
            sweep()
        assert ended == ["no message (ended by signal 15)"]
        assert signal.getsignal(signal.SIGTERM) is unheeded
    finally:
        signal.signal(signal.SIGTERM, before)


def test_runs_wait_for_those_they_read(tmp_path):
    sweep = Sweep(tasks=("digits",), arms=("adamw-matched", "adamw-tuned"), seeds=(0, 1))
    jobs = plan(sweep, tmp_path, None).jobs
    assert len(jobs) == 2 + 2 + 2 + 8  # with those of metaadamw, and the grid once
    start = Inside()
    follow(jobs, start)
    for place, job in jobs.items():
        for need in job.needs:
            assert start.started.index(need) < start.started.index(place)


def test_a_tuned_and_a_matched_arm_from_beginning_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr("metaadamw_bench.arms.TUNING_GRID", {})
    monkeypatch.setattr(
        "metaadamw_bench.references.TUNING_GRID", {"lr": (0.1, 1.0), "weight_decay": (0.01,)}
    )
    task = get_task("digits").prepare()
    tuned = RunRequest(task="digits", arm="adamw-tuned", max_steps=12)
    references = References(tuning=tmp_path / "tuning")
    request = fill_in(tuned, references, QUIET, task)
    assert (request.lr, request.weight_decay) == (0.01, 0.01)
    tuning = json.loads((tmp_path / "tuning" / "tuning.json").read_text())
    assert [point["lr"] for point in tuning["points"]] == [0.001, 0.01]
    assert tuning["best"] == {"lr": 0.01, "weight_decay": 0.01}
    assert tuning["points"][0]["best_metric"] < tuning["points"][1]["best_metric"]
    grid_run = summary(tmp_path / "tuning" / "lr0.01-wd0.01")
    assert (grid_run["arm"], grid_run["seed"]) == ("adamw", 1000)
    with pytest.raises(ValueError, match="is what adamw-tuned is tuned on"):
        fill_in(RunRequest(task="digits", arm="adamw-tuned", seed=1000), references, QUIET, task)

    matched = RunRequest(task="digits", arm="adamw-matched-paper", max_steps=12)
    references = References(tuning=tmp_path, matched_to=tmp_path / "paper")
    with pytest.raises(ValueError, match="must hold a finished run of metaadamw-paper"):
        fill_in(matched, references, QUIET, task)
    paper = RunRequest(task="digits", arm="metaadamw-paper", max_steps=12)
    mean_alpha = execute(paper, tmp_path / "paper", QUIET)["mean_alpha"]
    filled = fill_in(matched, references, QUIET, task)
    assert filled.changes == {"mean_alpha": mean_alpha}
    execute(filled, tmp_path / "matched", QUIET)
    config = json.loads((tmp_path / "matched" / "config.json").read_text())
    assert config["lr"] == 0.01 * mean_alpha


def test_all_seeds_of_a_tuned_arm_may_begin_at_once(tmp_path, monkeypatch):
    one = {"lr": (1.0,), "weight_decay": (0.01,)}
    monkeypatch.setattr("metaadamw_bench.references.TUNING_GRID", one)
    task, references = get_task("digits").prepare(), References(tuning=tmp_path)

    def begin(seed):
        request = RunRequest(task="digits", arm="adamw-tuned", seed=seed, max_steps=2)
        return fill_in(request, references, QUIET, task).lr

    assert begin(0) == 0.01  # the grid is there now
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(begin, range(16))) == {0.01}


def test_a_run_that_is_done_is_not_repeated_and_another_is_not_overwritten(tmp_path):
    request = RunRequest(task="digits", arm="adamw", max_steps=3)
    first = execute(request, tmp_path, QUIET)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert execute(request, tmp_path, QUIET) == first
    with pytest.raises(ValueError, match=r"holds a run with another seed \(0, now 1\)"):
        execute(RunRequest(task="digits", arm="adamw", seed=1, max_steps=3), tmp_path, QUIET)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_run_made_before_an_option_existed_is_one_with_its_default(tmp_path):
    request = RunRequest(task="digits", arm="metaadamw", max_steps=3)
    first = execute(request, tmp_path, QUIET)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    for key, part, option in (
        ("old", "modulator", "mean_preserving"),
        ("older", "learning", "hvp"),
    ):
        del saved["arm_settings"][part][option]
        path.write_text(json.dumps({**saved, "key": key}))
        assert execute(request, tmp_path, QUIET) == first
    changed = RunRequest(task="digits", arm="metaadamw", max_steps=3, changes={"learning.every": 9})
    with pytest.raises(ValueError, match="holds a run with another arm_settings"):
        execute(changed, tmp_path, QUIET)


def test_further_learning_rates(tmp_path):
    arms = ("adamw", "adamw-tuned", "prodigy")
    sweep = Sweep(tasks=("digits",), arms=arms, lr_factors=(0.25, 4.0))
    jobs = plan(sweep, tmp_path, None).jobs
    rate = get_task("digits").prepare().lr
    place = tmp_path / "clean-small/digits"
    found = {str(p.relative_to(place)): job.request.lr for p, job in jobs.items() if "+" in str(p)}
    assert found == {"adamw+lr-x0.25/seed0": rate / 4, "adamw+lr-x4/seed0": rate * 4}
    assert jobs[place / "adamw+lr-x4/seed0"].title == f"digits, adamw, lr {4 * rate:g}, seed 0"


def test_what_cannot_run_is_named_and_the_rest_planned(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    sweep = Sweep(
        tasks=("digits", "etth1"),
        arms=("adamw", "prodigy", "muon"),
        ablations=("features-basic",),
    )
    planned = plan(sweep, tmp_path, tmp_path / "missing")
    assert list(planned.jobs) == [run_place(tmp_path, RunRequest(task="digits", arm="adamw"))]
    assert "does not exist" in planned.failed["etth1, 4 runs"]
    assert "pip install './bench[peers]'" in planned.failed["digits, prodigy, seed 0"]
    assert planned.skipped == [
        "arm muon does not fit the model of digits",
        "ablation features-basic changes nothing about metaadamw-paper here",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks = [", "Invalid|Unclosed|Expected"),
        ("taks = ['digits']", "'taks' is not one of tasks, arms"),
        ("tasks = 'digits'", "tasks must be a list of str"),
        ("seeds = ['a']", "seeds must be a list of int"),
        ("seeds = [true]", "seeds must be a list of int"),
        ("epochs = 1.5", "epochs must be int"),
        ("size = ['small']", "size must be str"),
        ("lr_factors = ['2']", "lr_factors must be a list of number"),
    ],
)
def test_a_sweep_file_is_checked(text, message, tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_sweep(path)


SWEEPS = sorted((Path(__file__).parents[2] / "sweeps").glob("*.toml"))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_sweeps_of_the_project_can_be_read(path):
    sweep = Sweep(**read_sweep(path))
    assert list(sweep.requests("etth1"))


def test_what_does_not_run_at_another_learning_rate_does_not_stop_the_rest(tmp_path):
    """An arm that does not fit, and a directory that holds another run."""
    sweep = Sweep(tasks=("digits",), arms=("adamw", "muon"), max_steps=3, lr_factors=(2.0, 4.0))
    (place,) = (p for p in plan(sweep, tmp_path, None).jobs if "lr-x4" in str(p))
    execute(RunRequest(task="digits", arm="adamw", max_steps=2), place, RunOptions(shown=False))
    planned = plan(sweep, tmp_path, None)
    assert [p.parent.name for p in planned.jobs] == ["adamw", "adamw+lr-x2"]
    assert planned.skipped == ["arm muon does not fit the model of digits"]
    (error,) = planned.failed.values()
    assert "max_steps" in error
