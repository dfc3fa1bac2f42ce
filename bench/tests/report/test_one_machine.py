"""Seconds of runs made on days when the machine was not equally fast."""

import pytest
from bench.tests.report.synthetic import change_json, write_run

from metaadamw_bench.report.comparison import compare
from metaadamw_bench.report.one_machine import on_one_machine
from metaadamw_bench.report.runs import read_runs


def make(root, arm, seed, *, passes, optimizer, meta=0.0, task="etth1", steps=100):
    """A run with these seconds a step."""
    run = write_run(root, task, arm, seed)
    train = steps * (passes + optimizer)
    seconds = {"train": train, "optimizer_step": steps * optimizer, "meta": steps * meta}
    seconds |= {"evaluation": passes, "logging": 0.0, "total": train}
    change_json(run / "summary.json", steps=steps, seconds=seconds)
    return run


def converted(root):
    runs, _ = read_runs([root])
    found = on_one_machine(runs, "adamw")
    return {(run.cell.task, run.cell.arm, run.seed): run for run in found}


def test_passes_take_as_long_as_in_the_middle_run_of_the_baseline(tmp_path):
    for seed, passes in enumerate((1.0, 2.0, 8.0)):
        make(tmp_path, "adamw", seed, passes=passes, optimizer=passes / 10)
    make(tmp_path, "metaadamw", 0, passes=4.0, optimizer=0.8, meta=0.4)
    runs = converted(tmp_path)
    for seed in range(3):
        assert runs["etth1", "adamw", seed].compute == pytest.approx(100 * 2.2)
    ours = runs["etth1", "metaadamw", 0]
    assert ours.compute == pytest.approx(100 * (2.0 + 0.4 + 0.2))
    assert ours.optimization == pytest.approx(100 * 0.6)
    assert ours.seconds["evaluation"] == pytest.approx(2.0)
    raw = {run.cell.arm: run for run in read_runs([tmp_path])[0]}["metaadamw"]
    assert [e.seconds for e in ours.evaluations] == pytest.approx(
        [e.seconds / 2 for e in raw.evaluations]
    )


def test_tasks_have_machines_of_their_own_and_do_without_the_baseline(tmp_path):
    make(tmp_path, "adamw", 0, passes=1.0, optimizer=0.1)
    for seed, passes in enumerate((3.0, 5.0, 9.0)):
        make(tmp_path, "muon", seed, passes=passes, optimizer=1.0, task="wikitext2")
    runs = converted(tmp_path)
    assert runs["etth1", "adamw", 0].compute == pytest.approx(110)
    assert runs["wikitext2", "muon", 1].compute == pytest.approx(100 * 6.0)
    assert runs["wikitext2", "muon", 0].compute == pytest.approx(100 * 5 * (1 + 1 / 3))


def test_a_run_that_tells_nothing_of_its_machine_stays_as_it_is(tmp_path):
    make(tmp_path, "adamw", 0, passes=1.0, optimizer=0.1)
    make(tmp_path, "metaadamw", 0, passes=0.0, optimizer=2.0)
    assert converted(tmp_path)["etth1", "metaadamw", 0].compute == pytest.approx(200)


def test_a_slow_day_costs_nothing_at_equal_compute(tmp_path):
    make(tmp_path, "adamw", 0, passes=1.0, optimizer=0.1, steps=576)
    make(tmp_path, "metaadamw", 0, passes=2.0, optimizer=0.2, steps=576)
    runs, _ = read_runs([tmp_path])
    same_day = on_one_machine(runs, "adamw")
    budgets = ("equal steps", "equal compute")
    steps, seconds = (compare(same_day, "metaadamw", "adamw", b)[0].gains for b in budgets)
    assert seconds == pytest.approx(steps)
    assert compare(runs, "metaadamw", "adamw", "equal compute")[0].gains < seconds
