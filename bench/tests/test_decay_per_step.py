"""Arms whose weight decay belongs to a step, not to a learning rate."""

from __future__ import annotations

import pytest

from metaadamw_bench.arm_settings import DECAY_PER_STEP
from metaadamw_bench.arms import get_arm
from metaadamw_bench.config import RunRequest
from metaadamw_bench.resolving import resolve
from metaadamw_bench.tasks import get_task


@pytest.mark.parametrize("arm", ["metaadamw-scalars", "metaadamw-window"])
def test_the_same_share_at_every_learning_rate(arm):
    task = get_task("digits").prepare()
    for lr in (None, 1e-3, 4e-2):
        config = resolve(RunRequest(task="digits", arm=arm, lr=lr), task, get_arm(arm))
        assert config.lr * config.weight_decay == pytest.approx(DECAY_PER_STEP)
    asked = RunRequest(task="digits", arm=arm, weight_decay=0.3)
    assert resolve(asked, task, get_arm(arm)).weight_decay == 0.3
    config = resolve(RunRequest(task="digits", arm="adamw"), task, get_arm("adamw"))
    assert config.weight_decay == task.weight_decay
