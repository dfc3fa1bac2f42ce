"""A run that is stopped and started again gives the numbers of one that was not, bit for bit."""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from dataclasses import replace

import pytest
import torch
from bench.tests.running import numbers

from metaadamw import fine_grained_groups
from metaadamw_bench.arms import ARMS
from metaadamw_bench.cli import main
from metaadamw_bench.config import RunRequest
from metaadamw_bench.progress import RunProgress
from metaadamw_bench.runs import RunOptions, execute
from metaadamw_bench.tasks import get_task

# digits has 9 batches an epoch: two evaluations, and meta-updates of the arms that make many.
STEPS = 22
OFTEN = RunOptions(shown=False, checkpoint_seconds=0.0)
NEVER = RunOptions(shown=False, checkpoint_seconds=1e9)


class Killed(BaseException):
    """Ends a run as abruptly as a signal: nothing is caught, nothing is cleaned up."""


def request(arm: str, **changes) -> RunRequest:
    followed = {}
    if arm.startswith("replay"):
        model = get_task("digits").prepare().build_model()
        groups = [group["name"] for group in fine_grained_groups(model, kinds="extended")]
        alpha = [[0.5] * len(groups), [0.3 + g for g in range(len(groups))]]
        beta = {"beta": alpha} if "two-horizons" in arm else {}
        followed = {"factors": {"groups": groups, "begins": [0, 7], "alpha": alpha, **beta}}
    elif ARMS[arm].matches:
        followed = {"mean_alpha": 0.9}
    return RunRequest(task="digits", arm=arm, seed=3, max_steps=STEPS, changes=followed, **changes)


def run_until(step, run_request, directory, options, monkeypatch):
    """Start a run that ends abruptly in the middle of a step."""

    def kill(self, at, loss):
        if at == step:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunProgress, "step", kill)
        with pytest.raises(Killed):
            execute(run_request, directory, options)


def fits(arm):
    return arm.name != "muon"  # digits has no hidden matrix


@pytest.mark.parametrize("arm", [arm.name for arm in ARMS.values() if fits(arm)])
def test_every_arm_resumes_exactly(arm, tmp_path, monkeypatch):
    if ARMS[arm].requires:
        pytest.importorskip(ARMS[arm].requires)
    execute(request(arm), tmp_path / "whole", NEVER)
    for step in (1, 9, 10, 21):
        run_until(step, request(arm), tmp_path / "parts", OFTEN, monkeypatch)
    execute(request(arm), tmp_path / "parts", OFTEN)
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")


def test_muon_resumes_exactly(tmp_path, monkeypatch):
    pytest.importorskip("torch.optim", reason="Muon is part of torch from 2.9 on")
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    muon = RunRequest(task="pydoc", arm="muon", max_steps=4)
    execute(muon, tmp_path / "whole", NEVER)
    run_until(3, muon, tmp_path / "parts", OFTEN, monkeypatch)
    execute(muon, tmp_path / "parts", OFTEN)
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")


def test_what_came_after_the_checkpoint_is_done_again(tmp_path, monkeypatch):
    execute(request("metaadamw-paper"), tmp_path / "whole", NEVER)
    parts = tmp_path / "parts"
    run_until(6, request("metaadamw-paper"), parts, OFTEN, monkeypatch)  # checkpoint after 5
    run_until(20, request("metaadamw-paper"), parts, NEVER, monkeypatch)  # back to 5
    lines = (parts / "metrics.jsonl").read_text().splitlines()
    assert len(lines) > 19
    execute(request("metaadamw-paper"), parts, NEVER)
    assert numbers(parts) == numbers(tmp_path / "whole")


def test_half_of_a_checkpoint_is_none(tmp_path, monkeypatch):
    execute(request("adamw"), tmp_path / "whole", NEVER)
    parts = tmp_path / "parts"
    run_until(12, request("adamw"), parts, OFTEN, monkeypatch)
    (parts / ".checkpoint.pt.tmp").write_bytes(b"half")
    execute(request("adamw"), parts, OFTEN)
    assert numbers(parts) == numbers(tmp_path / "whole")
    assert not list(parts.glob(".*"))


def test_a_sweep_leaves_no_beginning_of_a_checkpoint(tmp_path, monkeypatch):
    run_until(3, request("adamw"), tmp_path, NEVER, monkeypatch)
    (tmp_path / ".checkpoint.pt.tmp").write_bytes(b"half")  # killed while it wrote one
    execute(request("adamw"), tmp_path, replace(NEVER, keep_checkpoint=False))
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".jsonl"}


def test_cutting_a_run_changes_nothing_before_the_cut(tmp_path):
    arm = "metaadamw-online"
    execute(request(arm), tmp_path / "short", NEVER)
    longer = RunRequest(task="digits", arm=arm, seed=3, max_steps=STEPS + 9)
    execute(longer, tmp_path / "long", NEVER)
    short, long = (
        list((tmp_path / name / "metrics.jsonl").read_text().splitlines())
        for name in ("short", "long")
    )
    assert short[:-1] == long[: len(short) - 1]  # without the evaluation at the cut


@pytest.fixture(scope="module")
def start():
    """Start the command in a process of its own that need not import everything first."""
    context = multiprocessing.get_context("forkserver")
    modules = ("commands", "references", "tasks.digits")
    context.set_forkserver_preload(
        [*(f"metaadamw_bench.{name}" for name in modules), "sklearn.datasets", "torch._dynamo"]
    )

    def start(*words):
        process = context.Process(target=main, args=(list(map(str, words)),))
        process.start()
        return process

    return start


@pytest.mark.parametrize("arm", ["adamw", "metaadamw", "metaadamw-online"])
def test_kill_9_at_random_moments(arm, tmp_path, start):
    words = ["run", "digits", "--arm", arm, "--seed", 1, "--max-steps", 70, "--quiet"]
    words += ["--set", "learning.every=10"] if arm == "metaadamw" else []
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    process = start(*words, "--out", whole)
    process.join()
    assert process.exitcode == 0
    duration = json.loads((whole / "summary.json").read_text())["seconds"]["total"]

    moments = random.Random(arm)
    length = (whole / "metrics.jsonl").stat().st_size
    in_training = 0
    for _ in range(15):
        process = start(*words, "--out", parts, "--checkpoint-seconds", 0.02 * duration)
        if moments.random() < 0.8:  # most moments hit the training, some the process's start
            while not (parts / "metrics.jsonl").exists() and process.is_alive():
                time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.4) * duration)
        process.kill()
        process.join()
        if process.exitcode == 0:
            break
        journal = parts / "metrics.jsonl"
        in_training += journal.exists() and 0 < journal.stat().st_size < length
        if in_training == 4:
            break
    assert in_training

    process = start(*words, "--out", parts)
    process.join()
    assert process.exitcode == 0
    assert numbers(parts) == numbers(whole)
