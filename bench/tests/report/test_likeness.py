"""A cell holds runs that differ in their seed alone."""

from __future__ import annotations

import json

import pytest
from bench.tests.report.synthetic import change_json, write_run

from metaadamw import LookAhead
from metaadamw_bench.arms import ARMS
from metaadamw_bench.config import DoesNotFit, RunRequest
from metaadamw_bench.report.asked import Asked, asked
from metaadamw_bench.report.runs import read_runs
from metaadamw_bench.report.setting import Setting
from metaadamw_bench.resolving import resolve
from metaadamw_bench.tasks import get_task

ARM = "metaadamw-online"


def write(root, seed, arm=ARM, place=None, **changes):
    run = write_run(root, "etth1", arm, seed, place=place)
    change_json(run / "config.json", **changes)
    return run


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"weight_decay": 20.0}, "other weight_decay: 20, the others have 0.01"),
        ({"lr": 0.5}, "other lr: 0.5, the others have 0.001"),
        ({"precision": "bf16"}, "other precision: bf16, the others have fp32"),
        ({"device": "cuda"}, "other device: cuda, the others have cpu"),
        ({"threads": 2}, "other threads: 2, the others have 1"),
        ({"processes": 2}, "other processes: 2, the others have 1"),
        (
            {"arm_settings": {"meta": {"lr": 0.5}}, "threads": 2},
            "other learning.lr: 0.5, the others have 0.0001; other threads: 2, the others have 1",
        ),
    ],
)
def test_a_run_unlike_the_others_is_left_out_and_says_why(tmp_path, changes, reason):
    usual = {"arm_settings": {"meta": {"lr": 1e-4}}, "precision": "fp32", "processes": 1}
    for seed in (0, 1):
        write(tmp_path, seed, **usual)
    write(tmp_path, 2, **(usual | changes))
    runs, (left_out,) = read_runs([tmp_path])
    assert [run.seed for run in runs] == [0, 1]
    assert left_out.path.endswith("seed2")
    assert left_out.reason == reason


def test_what_an_older_version_did_not_know_it_left_at_its_default(tmp_path):
    write(tmp_path, 0, arm_settings={"meta": {"lr": 1e-4}})
    for seed in (1, 2):
        known = {"lr": 1e-4, "every": LookAhead().every, "priorities": [1.0, 1.0, 1.0]}
        write(tmp_path, seed, arm_settings={"meta": known})
    write(tmp_path, 3, arm_settings={"meta": {"lr": 1e-4, "every": 9}})
    runs, (left_out,) = read_runs([tmp_path])
    assert [run.seed for run in runs] == [0, 1, 2]
    assert left_out.reason == "other learning.every: 9, the others have 100"


def test_what_other_runs_fill_in_may_differ_from_seed_to_seed(tmp_path):
    for seed in range(3):
        alpha = 0.5 + 0.1 * seed
        own = {"arm_settings": {"mean_alpha": alpha}, "lr": 1e-3 * alpha}
        write(tmp_path, seed, "adamw-matched", **own)
        grid = {"tuning_grid": {"lr": [1.0]}, "tuning_seed": 1000}
        write(tmp_path, seed, "adamw-tuned", arm_settings=grid, lr=1e-3 * (1 + seed))
        factors = {"groups": ["g"], "begins": [0], "alpha": [[alpha]]}
        write(tmp_path, seed, "muon", arm_settings={"part": "schedule", "factors": factors})
    runs, left_out = read_runs([tmp_path])
    assert (len(runs), left_out) == (9, [])


def test_runs_that_a_sweep_places_say_what_is_usual(tmp_path):
    write(tmp_path, 0)
    for seed in range(3):
        write(tmp_path, seed, place=f"tries/{seed}", weight_decay=20.0)
    runs, left_out = read_runs([tmp_path])
    assert [(run.seed, run.weight_decay) for run in runs] == [(0, 0.01)]
    reasons = {entry.reason for entry in left_out}
    assert reasons == {"other weight_decay: 20, the others have 0.01"}


def test_another_learning_rate_is_no_excuse_for_other_settings(tmp_path):
    write(tmp_path, 0)
    write(tmp_path, 0, place="rates/4e-3", lr=4e-3)
    write(tmp_path, 0, place="rates/decay-per-step", lr=2e-3, weight_decay=0.005)
    write(tmp_path, 0, place="rates/also-decay", lr=8e-3, weight_decay=20.0)
    runs, (left_out,) = read_runs([tmp_path])
    assert [run.cell.ablation for run in runs] == [None, "lr=0.002", "lr=0.004"]
    assert left_out.reason == (
        "other lr: 0.008, the others have 0.001; other weight_decay: 20, the others have 0.01"
    )


def test_a_run_that_failed_with_other_settings_is_no_failure_of_the_cell(tmp_path):
    write(tmp_path, 0)
    for seed, decay in ((1, 0.01), (2, 20.0)):
        run = write(tmp_path, seed, weight_decay=decay)
        change_json(run / "summary.json", status="failed", error="boom")
    _, (usual, unlike) = read_runs([tmp_path])
    assert (usual.cell is None, usual.reason) == (False, "failed: boom")
    assert unlike.cell is None
    assert unlike.reason == "failed: boom; other weight_decay: 20, the others have 0.01"


def test_settings_that_make_no_sense_cost_the_run_alone(tmp_path):
    write(tmp_path, 0)
    for seed, settings in enumerate(([1], {"mean_alpha": "x"}, {"meta": 3}), start=1):
        write(tmp_path, seed, arm_settings=settings)
    runs, left_out = read_runs([tmp_path])
    assert [run.seed for run in runs] == [0]
    assert len(left_out) == 3


def test_each_kind_of_arm_has_its_own_number_of_epochs():
    bounds = get_task("imdb").max_epochs("paper", "full")
    assert bounds["adamw"] != bounds["metaadamw"]
    settings = {"adamw": {}, "metaadamw": {"modulator": {}}}
    for kind, own in settings.items():
        for epochs in bounds.values():
            config = {"protocol": "paper", "size": "full", "task": "imdb", "epochs": epochs}
            found = Setting.of({**config, "arm_settings": own})
            assert found.epochs == (None if epochs == bounds[kind] else epochs)


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_as_it_is_asks_for_nothing(name):
    arm, task = ARMS[name], get_task("digits").prepare()
    filled_in = {"mean_alpha": 0.9, "factors": {"groups": ["g"]}}
    changes = {k: v for k, v in filled_in.items() if k in arm.settings(task)}
    request = RunRequest(task="digits", arm=name, changes=changes if arm.matches else {})
    try:
        config = json.loads(json.dumps(resolve(request, task, arm).as_json()))
    except DoesNotFit:
        pytest.skip("does not fit this model")
    found = changes.get("mean_alpha")
    assert asked(config) == Asked(mean_alpha=found)
    config |= {"device": "cuda", "processes": 2}
    config["arm_settings"]["some.setting"] = [1.0]
    assert asked(config) == Asked(("--device", "cuda"), ("some.setting=[1.0]",), 2, found)
