import json

import pytest
from bench.tests.report.synthetic import change_json, write_run

from metaadamw_bench.report.comparison import best_within, compare
from metaadamw_bench.report.runs import read_runs


def make(root, arm, metrics, seconds, seed=0):
    """A run on etth1 (lower is better) with these metrics after steps 10, 20, …"""
    run = write_run(root, "etth1", arm, seed, protocol="paper")
    lines = [
        {"kind": "evaluation", "step": 10 * n, "epoch": n, "split": "validation"}
        | {"loss": metric, "metric": metric}
        for n, metric in enumerate(metrics, start=1)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    spent = {
        "train": seconds - 1,
        "optimizer_step": 0.5,
        "meta": 1,
        "evaluation": 5,
        "logging": 0,
    }
    spent["total"] = seconds + 5
    change_json(
        run / "summary.json", best_metric=min(metrics), steps=10 * len(metrics), seconds=spent
    )


@pytest.mark.parametrize("seconds", [1.6, 1.7, 3.2, 3.4])
def test_a_run_has_its_only_evaluation_within_its_own_budget(tmp_path, seconds):
    for arm in ("adamw", "metaadamw"):
        make(tmp_path, arm, [2.0], seconds=seconds)
        run = tmp_path / "paper-small" / "etth1" / arm / "seed0"
        change_json(run / "summary.json", steps=323)
        text = (run / "metrics.jsonl").read_text().replace('"step": 10', '"step": 323')
        (run / "metrics.jsonl").write_text(text)
    runs, _ = read_runs([tmp_path])
    (found,) = compare(runs, "metaadamw", "adamw", "equal compute")
    assert found.values == found.baseline_values == (2.0,)


def test_budgets_are_what_the_baselines_run_took(tmp_path):
    make(tmp_path, "adamw", [3.0, 2.0], seconds=20)  # stopped after 20 steps, 1 s each
    make(tmp_path, "metaadamw", [2.5, 1.9, 1.5, 1.0], seconds=80)  # 2 s a step
    runs, left_out = read_runs([tmp_path])
    assert left_out == []
    gains = {
        budget: compare(runs, "metaadamw", "adamw", budget)[0].gains[0]
        for budget in ("whole run", "equal steps", "equal compute")
    }
    assert gains["whole run"] == pytest.approx(2.0 - 1.0)
    assert gains["equal steps"] == pytest.approx(2.0 - 1.9)
    assert gains["equal compute"] == pytest.approx(2.0 - 2.5)  # 20 s buy 10 steps: a loss
    # The other way round, AdamW has stopped long before and keeps its best.
    (back,) = compare(runs, "adamw", "metaadamw", "equal steps")
    assert back.gains[0] == pytest.approx(1.0 - 2.0)


def test_best_so_far_is_interpolated_and_never_gets_worse(tmp_path):
    make(tmp_path, "adamw", [3.0, 2.0, 5.0], seconds=30)
    ((run,), _) = read_runs([tmp_path])
    found = [best_within(run, "step", limit) for limit in (9, 10, 15, 20, 30, 99)]
    assert found == [None, 3.0, 2.5, 2.0, 2.0, 2.0]
    assert best_within(run, "seconds", 15) == pytest.approx(2.5)


def test_nothing_to_compare_before_the_first_evaluation(tmp_path):
    make(tmp_path, "adamw", [3.0], seconds=10)
    make(tmp_path, "metaadamw", [2.0], seconds=20)
    runs, _ = read_runs([tmp_path])
    assert compare(runs, "metaadamw", "adamw", "equal compute") == []


def test_seeds_are_not_picked_by_whether_the_arm_was_fast(tmp_path):
    for seed, seconds in enumerate((9, 11, 12)):  # the only evaluation is at the end
        make(tmp_path, "adamw", [3.0], seconds=10, seed=seed)
        make(tmp_path, "metaadamw", [2.0], seconds=seconds, seed=seed)
    runs, _ = read_runs([tmp_path])
    assert compare(runs, "metaadamw", "adamw", "equal compute") == []
    (found,) = compare(runs, "metaadamw", "adamw", "equal steps")
    assert found.seeds == (0, 1, 2)
