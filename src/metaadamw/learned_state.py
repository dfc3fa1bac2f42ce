"""The learned part as plain tensors, numbers and strings, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metaadamw import checkpoint
from metaadamw.directions import LastStep
from metaadamw.modulator import Modulation

if TYPE_CHECKING:
    from metaadamw.learner import Learner

__all__ = ["learned_state", "restore"]

_ARCHITECTURE = ("heads", "alpha_range", "beta_range", "scale", "mean_preserving")


def learned_state(learner: Learner, param_groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Everything of a learner that the next steps depend on."""
    state: dict[str, Any] = {
        "version": checkpoint.VERSION,
        "features": [feature.name for feature in learner.table],
        "architecture": {key: getattr(learner.config, key) for key in _ARCHITECTURE},
        "groups": checkpoint.group_signature(param_groups),
        "modulator": {k: v.detach().clone() for k, v in learner.modulator.state_dict().items()},
        "raw_log_variances": learner.weighting.raw_log_variances.detach().clone(),
        "meta_optimizer": learner.optimizer.state_dict(learner.learned),
        "steps": learner.steps,
        "last_meta_step": learner.last_meta_step,
        "applied": learner.applied.clone(),
        "skipped": learner.skipped.clone(),
        "highest_lr": learner.highest_lr.clone(),
    }
    if learner.meta.consecutive_lr:
        optimizer = learner.consecutive_optimizer
        state["consecutive_optimizer"] = optimizer.state_dict(learner.learned)
    # Distributed checkpointing fills the tensors it is shown, so a fresh optimizer shows all.
    layout = learner.layout
    matrix, row = layout.zero.expand(len(layout.sizes), len(learner.table)), layout.numel * 0
    features = matrix if learner.features is None else learner.features
    held, rates, decays, moved, numbers = learner.last or LastStep(
        *(matrix, row, row),
        (False,) * len(layout.groups),
        ((0.0, 0.0, 0.0),) * len(layout.sizes),
    )
    state["held_features"] = features.clone()
    state["modulation"] = [factor.clone() for factor in learner.last_modulation]
    state["last_step"] = [
        *(held.clone(), rates.clone(), decays.clone()),
        *(list(moved), [list(entry) for entry in numbers]),
    ]
    known = learner.features, learner.modulation, learner.last
    state["known"] = {
        key: value is not None for key, value in zip(checkpoint.POSITION, known, strict=True)
    }
    return state


def restore(learner: Learner, state: Mapping[str, Any]) -> None:
    """Give a learner the checked ``state``."""

    def ours(tensor: Tensor) -> Tensor:
        layout = learner.layout
        return tensor.detach().to(device=layout.device, dtype=layout.dtype, copy=True)

    learner.modulator.load_state_dict(state["modulator"])
    with torch.no_grad():
        learner.weighting.raw_log_variances.copy_(state["raw_log_variances"])
    learner.optimizer.load_state_dict(state["meta_optimizer"], learner.learned)
    if learner.meta.consecutive_lr:
        learner.consecutive_optimizer.load_state_dict(
            state["consecutive_optimizer"], learner.learned
        )
    learner.steps = state["steps"]
    learner.device_steps.fill_(learner.steps)
    learner.last_meta_step = state["last_meta_step"]
    learner.applied.copy_(state["applied"])
    learner.skipped.copy_(state["skipped"])
    learner.highest_lr = ours(state["highest_lr"])
    learner.features = learner.modulation = learner.last = None
    if state["known"]["held_features"]:
        learner.features = ours(state["held_features"])
    if state["known"]["modulation"]:
        learner.modulation = Modulation(*map(ours, state["modulation"]))
    if state["known"]["last_step"]:
        features, rates, decays, moved, hyperparameters = state["last_step"]
        learner.last = LastStep(
            *(ours(features), ours(rates), ours(decays)),
            tuple(moved),
            tuple((beta1, beta2, eps) for beta1, beta2, eps in hyperparameters),
        )
