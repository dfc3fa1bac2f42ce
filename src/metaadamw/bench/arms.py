"""The optimizers that are compared; adding one is a function and a line in ``ARMS``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from metaadamw import MetaAdamW, MetaConfig, fine_grained_groups
from metaadamw.bench.tasks.spec import PreparedTask

__all__ = ["ARMS", "Arm", "get_arm"]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """An optimizer as it takes part in a comparison.

    Attributes:
        name: the arm's name on the command line.
        title: the arm in a few words, for tables and pictures.
        description: what exactly runs, with every setting that is not the library's default.
        build: ``build(model, task, total_steps, seed)`` returns the optimizer.
    """

    name: str
    title: str
    description: str
    build: Callable[[nn.Module, PreparedTask, int, int], torch.optim.Optimizer]


def _adamw(
    model: nn.Module, task: PreparedTask, total_steps: int, seed: int
) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=task.lr, weight_decay=task.weight_decay)


def _metaadamw(meta: MetaConfig) -> Callable[[nn.Module, PreparedTask, int, int], MetaAdamW]:
    def build(model: nn.Module, task: PreparedTask, total_steps: int, seed: int) -> MetaAdamW:
        return MetaAdamW(
            fine_grained_groups(model),
            lr=task.lr,
            weight_decay=task.weight_decay,
            meta=meta,
            total_steps=total_steps,
            seed=seed,
        )

    return build


ARMS = {
    arm.name: arm
    for arm in (
        Arm(
            name="adamw",
            title="AdamW",
            description="torch.optim.AdamW with the task's learning rate and weight decay",
            build=_adamw,
        ),
        Arm(
            name="metaadamw",
            title="MetaAdamW, look-ahead",
            description=(
                "the library's defaults, but with a meta-update every 10 steps instead of every "
                "100, by Adam instead of SGD: a run has only a few hundred steps to learn in"
            ),
            build=_metaadamw(MetaConfig(every=10, optimizer="adam")),
        ),
        Arm(
            name="metaadamw-online",
            title="MetaAdamW, online",
            description=(
                "the library's defaults in online mode: the modulator learns inside step(), "
                "without meta-updates and without the meta-validation part"
            ),
            build=_metaadamw(MetaConfig(mode="online")),
        ),
    )
}


def get_arm(name: str) -> Arm:
    """Look an arm up by its name.

    Raises:
        ValueError: no arm has this name.
    """
    if name not in ARMS:
        raise ValueError(f"arm: {name!r} is not one of {', '.join(ARMS)}")
    return ARMS[name]
