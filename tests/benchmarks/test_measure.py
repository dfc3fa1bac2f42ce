"""Timing: who is called how often, and what a cost that repeats is charged."""

from __future__ import annotations

import pytest
from benchmarks.measure import environment, side_by_side, summary


def test_median_and_quartiles():
    timing = summary([1.0, 2.0, 3.0, 4.0, 100.0])
    assert (timing.q1, timing.median, timing.q3, timing.rounds) == (2.0, 3.0, 4.0, 5)


def test_the_dear_step_of_a_period_counts():
    cheap_and_dear = [1.0] * 7 + [9.0]
    assert summary(cheap_and_dear * 3, period=8).median == 2.0


def test_an_outlier_does_not_count_and_an_unfinished_period_neither():
    assert summary([1.0, 3.0, 1.0, 300.0, 1.0, 3.0, 77.0], period=2).median == 2.0


def test_less_than_a_period_is_refused():
    with pytest.raises(ValueError, match="one period of 8, got 3"):
        summary([1.0] * 3, period=8)


def test_everybody_is_called_once_a_round():
    calls = []
    contestants = {name: lambda name=name: calls.append(name) for name in "abc"}
    timings = side_by_side(contestants, rounds=5, warmup=2, periods={"b": 2})
    assert {name: timing.rounds for name, timing in timings.items()} == {"a": 5, "b": 4, "c": 5}
    assert [sorted(calls[i : i + 3]) for i in range(0, len(calls), 3)] == [["a", "b", "c"]] * 7


def test_a_longer_period_is_no_reason_to_call_the_others():
    timings = side_by_side({"a": lambda: None, "b": lambda: None}, rounds=2, periods={"b": 6})
    assert {name: timing.rounds for name, timing in timings.items()} == {"a": 2, "b": 6}


def test_a_whole_period_is_measured_however_little_time_there_is():
    timings = side_by_side({"a": lambda: None}, rounds=100, periods={"a": 4}, seconds=0.0)
    assert timings["a"].rounds == 4


def test_environment_names_the_machine():
    named = environment()
    assert named["threads"] == 1
    assert named["processor"]
