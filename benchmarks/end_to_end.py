"""What an epoch of the paper's five tasks costs with AdamW and with MetaAdamW as in the paper.

An epoch is put together from its measured parts:

    steps · (forward and backward + optimizer step) + steps / K · meta-update
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.authors_port import AuthorsMetaAdamW
from benchmarks.measure import side_by_side
from benchmarks.models import all_params, twins
from benchmarks.tasks import TASKS, Task
from metaadamw import MetaAdamW, MetaUpdate, fine_grained_groups, paper_preset

OURS = ("metaadamw", "metaadamw_lean", "metaadamw_half")
"""As in the paper; the training gradient serves as B1; the other two batches of a meta-update half
as large as well."""
ARMS = ("adamw", *OURS, "authors")

UNITS = len(TASKS)


def measure(task: Task, quick: bool) -> dict[str, Any]:
    """The parts of a task's epoch, side by side."""
    torch.manual_seed(0)
    size = 2 if quick else task.batch_size
    batches = [task.batch(size) for _ in range(4)]
    halves = [task.batch(max(1, size // 2)) for _ in range(2)]
    model = task.build()
    modulator, meta = paper_preset(task.name).values()
    groups = fine_grained_groups(model, kinds="paper")
    ours = MetaAdamW(groups, lr=5e-4, modulator=modulator, learning=meta, fused=True)
    others = {
        "adamw": torch.optim.AdamW(all_params(twins(groups)), lr=5e-4, fused=True),
        "authors": AuthorsMetaAdamW(twins(groups), modulator, meta),
    }

    def forward_backward() -> None:
        ours.zero_grad()
        task.loss(model, batches[0]).backward()
        for optimizer in others.values():  # their twins see the same gradients
            for twin, param in zip(all_params(optimizer.param_groups), model_params, strict=True):
                twin.grad = param.grad

    model_params = all_params(groups)
    timings = side_by_side(
        {
            "forward_backward": forward_backward,
            **{name: optimizer.step for name, optimizer in others.items()},
            "metaadamw": ours.step,
        },
        rounds=2 if quick else 12,
        warmup=1,
        seconds=10,
    )
    reports: list[MetaUpdate] = []
    meta_timings = side_by_side(
        {
            "metaadamw": lambda: reports.append(
                ours.update_attention(model, task.loss, *batches[1:])
            ),
            "metaadamw_lean": lambda: ours.update_attention(
                model, task.loss, None, *batches[2:], training_loss=1.0
            ),
            "metaadamw_half": lambda: ours.update_attention(
                model, task.loss, None, *halves, training_loss=1.0
            ),
            "authors": lambda: others["authors"].update_attention(
                model, task.loss, *batches[1:], batches[0]
            ),
        },
        rounds=1 if quick else 5,
        warmup=0,
        seconds=10,
    )
    return {
        "steps": task.steps,
        "batch_size": size,
        "every": meta.every,
        "layers": modulator.layers,
        "hvp": reports[0].hvp,
        "applied": all(report.applied for report in reports),
        "groups": len(groups),
        "parameters": sum(p.numel() for p in model_params),
        "parts": {name: asdict(timing) for name, timing in timings.items()},
        "meta_updates": {name: asdict(timing) for name, timing in meta_timings.items()},
        **epochs(
            task.steps,
            meta.every,
            {name: timing.median for name, timing in timings.items()},
            {name: timing.median for name, timing in meta_timings.items()},
        ),
    }


def epochs(
    steps: int, every: int, parts: dict[str, float], meta_updates: dict[str, float]
) -> dict[str, dict[str, float]]:
    """Seconds of an epoch after the warm-up, and what it takes more than AdamW's, as a share."""
    seconds = {
        arm: steps * (parts["forward_backward"] + parts["metaadamw" if arm in OURS else arm])
        + steps / every * meta_updates.get(arm, 0.0)
        for arm in ARMS
    }
    return {
        "epoch": seconds,
        "overhead": {arm: seconds[arm] / seconds["adamw"] - 1 for arm in ARMS if arm != "adamw"},
    }


def run(quick: bool, advance: Callable[[], None]) -> dict[str, Any]:
    """Every task."""
    result = {}
    for name, task in TASKS.items():
        result[name] = measure(task, quick)
        advance()
    return result
