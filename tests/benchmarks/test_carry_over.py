"""The experiment on the two demo tasks: weights arrive, runs are paired, gains have their sign."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import carry_over
from metaadamw_bench.arms import TUNING_SEED, get_arm
from metaadamw_bench.config import RunRequest
from metaadamw_bench.places import run_place
from metaadamw_bench.resolving import resolve
from metaadamw_bench.runs import RunOptions, execute, prepare
from metaadamw_bench.stored_runs import find_runs


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a donor: a run on digits long enough for two windows."""
    root = tmp_path_factory.mktemp("runs")
    request = RunRequest(task="digits", arm=carry_over.ARM, seed=TUNING_SEED, max_steps=240)
    execute(request, run_place(root, request), RunOptions(shown=False))
    return root


def test_a_modulator_starts_with_the_weights_of_the_donor(root: Path) -> None:
    donor = RunRequest(task="digits", arm=carry_over.ARM, seed=TUNING_SEED)
    arm = carry_over.carried_arm("digits", run_place(root, donor))
    request = RunRequest(task="pydoc", arm=arm.name)
    task = prepare(request, None)
    model = task.build_model()
    config = resolve(request, task, arm)
    assert config.arm == "metaadamw-slow-mean-attention-from-digits"
    carried, fresh = arm.build(model, config), get_arm(carry_over.ARM).build(model, config)
    ours, theirs = carried.modulator.state_dict(), fresh.modulator.state_dict()
    assert ours.keys() == theirs.keys()
    assert theirs["output_weight"].eq(0).all()  # at the identity
    assert ours["output_weight"].ne(0).any()
    weights = carry_over.Carried(run_place(root, donor)).weights()
    assert all(torch.equal(ours[name], weights[name]) for name in ours)


def test_a_donor_without_modulator_is_an_error(tmp_path: Path) -> None:
    request = RunRequest(task="digits", arm="adamw", max_steps=1)
    execute(request, tmp_path, RunOptions(shown=False))
    with pytest.raises(ValueError, match="holds no modulator"):
        carry_over.Carried(tmp_path).weights()


def test_the_experiment(tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path / "runs"), "--results", str(tmp_path / "results.json")]
    arguments += ["--pairs", "digits:digits", "--seeds", "2", "--epochs", "1", "--jobs", "1"]
    carry_over.main(arguments)
    (row,) = json.loads((tmp_path / "results.json").read_text())["pairs"]
    for seed, value in enumerate(row["identity"]):
        request = RunRequest(task="digits", arm=carry_over.ARM, seed=seed, epochs=1)
        summary = execute(request, tmp_path / "again" / str(seed), RunOptions(shown=False))
        assert summary["best_metric"] == value
        found = carry_over.known(request, find_runs([tmp_path / "runs"]))
        assert found is not None
        assert carry_over.metric(found) == value


def test_gains_are_positive_where_the_donor_helps() -> None:
    def summary(value: float, direction: str) -> carry_over.Summary:
        return {"test_metric": value, "best_metric": 0.0, "metric_direction": direction}

    for direction, gain in (("minimize", -100 / 3), ("maximize", 100 / 3)):
        pairs = [
            (summary(2.0, direction), summary(3.0, direction)),
            (summary(4.0, direction), summary(5.0, direction)),
            (summary(3.0, direction), summary(4.0, direction)),
        ]
        row = carry_over.comparison("a", "b", pairs)
        assert row["mean"] == pytest.approx(gain)
        assert row["gains"] == pytest.approx([gain] * 3)
