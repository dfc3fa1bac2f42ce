"""The factors that the package carries from task to task."""

from __future__ import annotations

import json
import math

import pytest
import torch
from benchmarks.carried_factors import SHARE, TASKS, end_of, run_of, table, tables
from torch import nn

from metaadamw import Attention, Factors, MetaAdamW, Windows, carried_factors, fine_grained_groups
from metaadamw.modulators.carried import TABLES
from metaadamw_bench.arms import get_arm
from metaadamw_bench.tasks import get_task


def test_what_is_shipped_comes_from_the_committed_runs():
    assert json.loads(TABLES.read_text()) == tables()


def test_an_end_is_relative_to_the_other_groups():
    place = end_of(run_of("wikitext2", 0))
    assert sum(place.values()) == pytest.approx(0)
    assert place["layer_norm.middle.bias"] > 3


def test_a_table_is_the_mean_over_tasks_half_of_the_way():
    one = {"attention.deep.bias": -1.0, "convolution.deep.weight": 2.0}
    two = {"attention.deep.bias": -3.0, "attention.shallow.bias": 1.0}
    found = table([one, two])
    assert found == {
        "attention.deep.bias": round(math.exp(SHARE * -2), 3),
        "attention.shallow.bias": round(math.exp(SHARE * 1), 3),
        # No task had it: the mean over tasks of all that they know of its kind.
        "attention.middle.bias": round(math.exp(SHARE * -1), 3),
    }


@pytest.mark.parametrize("task", TASKS)
def test_a_task_has_no_part_in_its_own_table(task, monkeypatch):
    original = end_of

    def spoiled(run):
        place = original(run)
        return dict.fromkeys(place, 100.0) if run.path.parts[-3] == task else place

    monkeypatch.setattr("benchmarks.carried_factors.end_of", spoiled)
    found = tables()
    assert found["without"][task] == carried_factors(without=task)
    assert found["all"] != carried_factors()


def test_groups_start_where_their_name_says():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Tanh())
    modulator, meta = (Factors(alpha_start=carried_factors()), Windows())
    optimizer = MetaAdamW(fine_grained_groups(model), modulator=modulator, learning=meta)
    model(torch.arange(5)).sum().backward()
    optimizer.step()
    factors = carried_factors()
    expected = [factors.get(name, 1.0) for name in optimizer.group_names]
    assert len({*expected}) > 2
    torch.testing.assert_close(optimizer.modulation.alpha.tolist(), expected, rtol=1e-5, atol=0)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"without must be one of .*'wikitext2'.*, got 'mnist'"):
        carried_factors(without="mnist")
    with pytest.raises(TypeError, match="alpha_start must be a number"):
        Attention(scale="log", alpha_range=4.0, alpha_start=carried_factors())


def test_an_arm_starts_with_what_other_tasks_have_taught():
    task = get_task("digits").prepare()
    starts = dict(get_arm("metaadamw-carried").settings(task)["modulator"]["alpha_start"])
    assert starts == carried_factors()  # a task of the demo has given nothing
