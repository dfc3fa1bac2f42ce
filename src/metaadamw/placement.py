"""Where everything that learns lives: with the parameters and groups, wherever those go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from metaadamw.layout import Layout
from metaadamw.modulator import Modulation, rows_at

if TYPE_CHECKING:
    from metaadamw.learner import Learner

__all__ = ["follow", "home"]


def home(param_groups: Sequence[Mapping[str, Any]]) -> tuple[torch.device, torch.dtype]:
    """The device of the first parameter; and float64 where one has that, else float32."""
    params = [p for group in param_groups for p in group["params"]]
    double = any(p.dtype in (torch.float64, torch.complex128) for p in params)
    return params[0].device, torch.float64 if double else torch.float32


def follow(learner: Learner, param_groups: Sequence[Mapping[str, Any]]) -> None:
    """Notice groups and parameters that were added, taken away or moved, and go along.

    ``Module.to`` leaves the parameters the same objects, so an optimizer may be built before it.
    A group is the same as before if its name is.
    """
    if learner.layout.fits(param_groups):
        return
    # Whoever asks for features or metrics may be in inference mode (a validation): what is made in
    # there could be neither learned from nor written to afterwards.
    with torch.inference_mode(False), torch.no_grad():
        _follow(learner, param_groups)


def _follow(learner: Learner, param_groups: Sequence[Mapping[str, Any]]) -> None:
    names = [str(group["name"]) for group in param_groups]
    if learner.schedule is not None:
        learner.schedule.check_groups(names)
    old = learner.layout
    device, dtype = home(param_groups)
    learner.layout = Layout(param_groups, device, dtype)
    # What was told of each tensor or group is of others now.
    if learner.layout.sizes != old.sizes or names != learner.names:
        learner.features = learner.modulation = learner.last = None
    if names != learner.names:
        _regroup(learner, names)
    if (device, dtype) == (old.device, old.dtype):
        return
    learner.modulator.to(device, dtype)
    learner.weighting.to(device, dtype)
    for optimizer in (learner.optimizer, learner.consecutive_optimizer):
        optimizer.to(device, dtype)
    learner.device_steps = learner.device_steps.to(device)
    learner.highest_lr = learner.highest_lr.to(device, dtype)
    learner.applied, learner.skipped = learner.applied.to(device), learner.skipped.to(device)
    if learner.features is not None:
        learner.features = learner.features.to(device, dtype)
    if learner.modulation is not None:
        learner.modulation = Modulation(*(t.to(device, dtype) for t in learner.modulation))
    if learner.last is not None:
        features, rates, decays = (t.to(device, dtype) for t in learner.last[:3])
        learner.last = learner.last._replace(features=features, rates=rates, decays=decays)
    learner.hvp = learner.meta.hvp  # other kernels may have other derivatives


def _regroup(learner: Learner, names: list[str]) -> None:
    """The modulator's rows of single groups, and their moments, go with the groups."""
    where = {name: i for i, name in enumerate(learner.names)}
    before = [where.get(name) for name in names]
    learned = learner.learned
    learner.modulator.regroup(names, before)
    learner.highest_lr = rows_at(learner.highest_lr, before)
    for optimizer in (learner.optimizer, learner.consecutive_optimizer):
        for moments in (optimizer.exp_avgs, optimizer.exp_avg_sqs):
            for i, moment in enumerate(moments):
                if learner.learned[i] is not learned[i]:
                    moments[i] = rows_at(moment, before)
    learner.names = names
