import statistics

import pytest

from metaadamw_bench.summary import Spread, summarise
from metaadamw_bench.train import Evaluation, Run


def run(arm, seed, metric, step_seconds):
    return Run(
        "digits",
        arm,
        seed,
        evaluations=[Evaluation(0, 2.3, 10.0), Evaluation(5, 0.5, metric)],
        seconds={"train": 2.0, "optimizer_step": step_seconds, "meta": 1.0, "evaluation": 9.0},
    )


RUNS = [
    run("adamw", 0, 90.0, 0.1),
    run("adamw", 1, 92.0, 0.3),
    run("metaadamw", 1, 91.0, 0.6),
    run("metaadamw", 0, 93.0, 0.6),
]


def test_differences_are_paired_by_seed():
    summary = summarise(RUNS, "digits", "metaadamw")
    assert summary.metric == Spread(92.0, statistics.stdev([93.0, 91.0]))
    assert summary.difference == Spread(1.0, statistics.stdev([3.0, -1.0]))
    assert summary.seconds == Spread(3.0, 0.0)
    assert summary.step_overhead == pytest.approx(3.0)


def test_baseline_has_no_difference():
    summary = summarise(RUNS, "digits", "adamw")
    assert summary.difference is None
    assert summary.step_overhead == 1.0


def test_spread_of_one_value_has_no_deviation():
    assert Spread.of([2.5]) == Spread(2.5, None)
    assert f"{Spread.of([2.5]):+.2f}" == "+2.50"


def test_deviation_carries_no_sign():
    assert f"{Spread(1.0, 0.5):+.1f}" == "+1.0 ± 0.5"
