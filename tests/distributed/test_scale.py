"""The cost model of docs/scale.md counts what happens, and the page says what was counted."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from benchmarks.scale_network import described
from benchmarks.scale_page import page

from benchmarks import scale, scale_model
from tests.distributed.processes import Processes

WIDTH = 16


@pytest.mark.parametrize("online", [False, True], ids=["look-ahead", "online"])
@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp"])
def test_the_model_counts_what_is_sent(
    sharded: bool, online: bool, processes: Callable[[int], Processes]
) -> None:
    model = described(WIDTH)
    reduced = scale_model.step_all_reduce(model, sharded, online=online)
    for row in processes(2).run(scale.measure, WIDTH, sharded, online):
        assert row["training_collectives"] == scale_model.training_collectives(model, sharded)
        assert row["step_collectives"].get("all_reduce", 0) == reduced
        if not online:
            assert row["meta_collectives"] == scale_model.meta_collectives(model, sharded)
            # Beside 4-byte step counters, one a tensor.
            state = scale_model.state_bytes(model, 2, sharded) + 4 * model.tensors
            assert row["state_bytes"] == state


def test_the_page_is_that_of_the_results() -> None:
    results = json.loads(scale.RESULTS.read_text(encoding="utf-8"))
    assert scale.PAGE.read_text(encoding="utf-8") == page(results)
