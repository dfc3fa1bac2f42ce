import math
import shutil

import numpy as np
import pytest
from bench.tests.report.synthetic import change_json, write_json, write_run

from metaadamw_bench.report.claims import claims
from metaadamw_bench.report.collection import Collection
from metaadamw_bench.report.commands import run_commands
from metaadamw_bench.report.heatmaps import mean_over_seeds
from metaadamw_bench.report.runs import Modulation, read_runs
from metaadamw_bench.report.tables import fidelity
from metaadamw_bench.tasks import get_task, task_names


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


DAMAGES = {
    "no summary.json": lambda run: (run / "summary.json").unlink(),
    "no config.json": lambda run: (run / "config.json").unlink(),
    "no environment.json": lambda run: (run / "environment.json").unlink(),
    "summary.json cannot be read": lambda run: cut(run / "summary.json"),
    "config.json is not an object": lambda run: write_json(run / "config.json", [1]),
    "metrics.jsonl: line": lambda run: cut(run / "metrics.jsonl"),
    "metrics.jsonl is missing": lambda run: (run / "metrics.jsonl").unlink(),
    "metrics.jsonl: no validation": lambda run: (run / "metrics.jsonl").write_text(""),
    "modulation.csv cannot be read": lambda run: cut(run / "modulation.csv"),
    "disagree about seed": lambda run: change_json(run / "summary.json", seed=7),
    "seconds is missing": lambda run: change_json(run / "summary.json", seconds=None),
    "steps is missing": lambda run: change_json(run / "summary.json", steps="many"),
    "best_metric is not a number": lambda run: change_json(run / "summary.json", best_metric="1"),
    "test_metric is not a number": lambda run: change_json(run / "summary.json", test_metric="1"),
    "metric_direction is 'up'": lambda run: change_json(
        run / "summary.json", metric_direction="up"
    ),
    "failed: OSError: disk full": lambda run: change_json(
        run / "summary.json", status="failed", error="OSError: disk full"
    ),
    "diverged": lambda run: change_json(run / "summary.json", best_metric=None),
    "diverged: no finite": lambda run: change_json(run / "summary.json", best_metric=math.inf),
    "ablation is ['x']": lambda run: [
        change_json(run / name, ablation=["x"]) for name in ("config.json", "summary.json")
    ],
    "max_steps is 'x'": lambda run: change_json(run / "config.json", max_steps="x"),
    "epochs is [1]": lambda run: change_json(run / "config.json", epochs=[1]),
    "modulation.csv cannot": lambda run: (run / "modulation.csv").write_bytes(bytes(200_000)),
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_damaged_run_is_named_and_left_out(tmp_path, reason):
    write_run(tmp_path, "etth1", "metaadamw", 0, epochs=8)
    damaged = write_run(tmp_path, "multi30k", "metaadamw", 1, epochs=9)
    DAMAGES[reason](damaged)
    runs, (left_out,) = read_runs([tmp_path])
    assert [run.cell.task for run in runs] == ["etth1"]
    assert left_out.path == f"{tmp_path.name}/clean-small/multi30k/metaadamw/seed1"
    assert reason in left_out.reason


def test_failed_and_diverged_runs_keep_their_place_in_tables(tmp_path):
    failed = write_run(tmp_path, "etth1", "muon", 0)
    change_json(failed / "summary.json", status="failed", error="boom")
    unfinished = write_run(tmp_path, "etth1", "muon", 1)
    (unfinished / "summary.json").unlink()
    _, left_out = read_runs([tmp_path])
    assert [entry.cell and entry.cell.arm for entry in left_out] == ["muon", None]


def test_copies_count_once(tmp_path):
    run = write_run(tmp_path / "runs", "etth1", "adamw", 0)
    shutil.copytree(run, tmp_path / "copy")
    runs, (left_out,) = read_runs([tmp_path / "runs", tmp_path / "copy", tmp_path / "runs"])
    assert [run.path for run in runs] == ["runs/clean-small/etth1/adamw/seed0"]
    assert left_out.path == "copy"
    assert "the same run as runs/clean-small/etth1/adamw/seed0" in left_out.reason


def test_cut_runs_are_another_setting(tmp_path):
    write_run(tmp_path / "whole", "etth1", "adamw", 0)
    write_run(tmp_path / "cut", "etth1", "adamw", 0, max_steps=50)
    runs, left_out = read_runs([tmp_path])
    assert left_out == []
    assert [run.cell.setting.slug for run in runs] == ["clean-small-50", "clean-small"]


def test_tuning_is_not_part_of_the_comparison(tmp_path):
    write_run(tmp_path, "etth1", "adamw", 0)
    place = "clean-small/etth1/adamw-tuned/tuning/lr0.003-wd0.01"
    write_run(tmp_path, "etth1", "adamw", 1000, place=place)
    runs, left_out = read_runs([tmp_path])
    assert ([run.seed for run in runs], left_out) == ([0], [])


def test_another_learning_rate_is_another_cell(tmp_path):
    write_run(tmp_path, "etth1", "adamw", 0)
    write_run(tmp_path, "etth1", "adamw", 0, lr=4e-3, place="rates/4e-3/seed0")
    runs, left_out = read_runs([tmp_path])
    assert left_out == []
    assert [(run.cell.ablation, run.rate) for run in runs] == [(None, 1e-3), ("lr=0.004", 4e-3)]


def test_runs_of_another_length_are_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    usual = get_task("etth1").max_epochs("clean", "small")["adamw"]
    for root, epochs in (("usual", usual), ("long", 2 * usual)):
        run = write_run(tmp_path / root, "etth1", "adamw", 0)
        change_json(run / "config.json", epochs=epochs)
    runs, left_out = read_runs([tmp_path / "usual", tmp_path / "long"])
    assert left_out == []
    assert [run.cell.setting.epochs for run in runs] == [None, 2 * usual]
    assert [run.cell.setting.title for run in runs] == [
        "clean protocol, small size",
        f"clean protocol, small size, {2 * usual} epochs",
    ]
    assert len({run.cell.setting.slug for run in runs}) == 2
    assert list(run_commands(runs[1:])) == [
        "metaadamw sweep --tasks etth1 --arms adamw --seeds 0 --protocol clean --size small "
        f"--epochs {2 * usual} --out long"
    ]
    claim = claims([Collection(runs[1].cell.setting, runs[1:], [], ["long"])])[0]
    assert [result.verdict for result in claim.results] == ["no data"]


def test_first_epochs_are_held_against_the_authors_first_epochs_only(tmp_path):
    run = write_run(tmp_path, "cifar10", "adamw", 0, protocol="paper", size="full", epochs=1)
    for asked, rows in ((1, ["epoch 1"]), (None, ["epoch 1", "epoch 5", "best"])):
        change_json(run / "config.json", epochs=asked)
        runs, _ = read_runs([tmp_path])
        setting = runs[0].cell.setting
        assert setting.title == "paper protocol, full size" + (", 1 epoch" if asked else "")
        table = fidelity(Collection(setting, runs, [], ["first"]))
        assert [row[0] for row in table.rows[1:]] == rows


def test_an_epoch_that_was_cut_is_none(tmp_path):
    run = write_run(tmp_path, "cifar10", "adamw", 0, protocol="paper", size="full", epochs=1)
    change_json(run / "config.json", max_steps=5)
    change_json(run / "summary.json", steps=5)
    evaluation = {"kind": "evaluation", "split": "validation", "loss": 1.0, "metric": 10.0}
    write_json(run / "metrics.jsonl", {**evaluation, "step": 5, "epoch": 1})
    runs, _ = read_runs([tmp_path])
    assert fidelity(Collection(runs[0].cell.setting, runs, [], ["cut"])) is None


@pytest.mark.parametrize("name", task_names())
def test_a_task_knows_its_length_without_its_data(name):
    task = get_task(name)
    for protocol in task.protocols:
        for size in task.sizes:
            epochs = task.max_epochs(protocol, size)
            assert set(epochs) == {"adamw", "metaadamw"}
            assert min(epochs.values()) >= 1


def test_no_runs_at_all(tmp_path):
    with pytest.raises(ValueError, match="no run directory in"):
        read_runs([tmp_path])
    with pytest.raises(ValueError, match="is not a directory"):
        read_runs([tmp_path / "missing"])


def history(steps, alpha):
    values = np.array(alpha, dtype=float)[:, None]
    return Modulation(np.array(steps, dtype=float), ("g",), values, 10 * values)


def test_mean_over_seeds_of_runs_that_were_thinned_and_stopped_differently():
    long = history([1, 2, 3, 4], [1, 2, 3, 4])
    short = history([1, 3], [5, 7])
    found = mean_over_seeds([short, long])
    assert found.steps.tolist() == [1, 2, 3, 4]
    assert found.alpha[:, 0].tolist() == [3, 3.5, 5, 4]
    assert found.beta[:, 0].tolist() == [30, 35, 50, 40]
