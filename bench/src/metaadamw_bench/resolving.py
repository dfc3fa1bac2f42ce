"""From what is asked for to a run: the task and the arm fill in what the request leaves open."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from metaadamw.checks import check_number
from metaadamw.choices import chosen
from metaadamw_bench.ablations import ablate
from metaadamw_bench.arm import Arm
from metaadamw_bench.config import DoesNotFit, RunConfig, RunRequest
from metaadamw_bench.names import suggestion
from metaadamw_bench.tasks import PreparedTask

__all__ = ["resolve"]

# What a generator of torch takes.
_SEEDS = 2**63


def resolve(request: RunRequest, task: PreparedTask, arm: Arm, processes: int = 1) -> RunConfig:
    """Fill in what the request leaves to the task and the arm.

    Raises:
        ValueError: an ablation or setting that the arm does not have.
        DoesNotFit: the arm or the ablation makes no difference for this task.
    """
    with torch.device("meta"):  # without drawing random numbers
        if not arm.fits(task.build_model()):
            raise DoesNotFit(f"arm {arm.name} does not fit the model of {task.name}")
    settings = copy.deepcopy(arm.settings(task))
    if request.ablation is not None:
        ablate(request.ablation, arm, settings, task.steps_per_epoch)
    for name, value in request.changes.items():
        _change(settings, name, value, arm)
    if arm.modulated:
        _check(settings)
    if arm.matches is not None and None in settings.values():
        raise ValueError(
            f"arm {arm.name} needs a finished run of {arm.matches} (--matched-to DIR)"
            + (" or a number (--mean-alpha)" if "mean_alpha" in settings else "")
        )
    epochs = request.epochs or task.max_epochs["metaadamw" if arm.modulated else "adamw"]
    lr = task.lr if arm.lr is None else arm.lr
    lr = (lr if request.lr is None else request.lr) * settings.get("mean_alpha", 1.0)
    if arm.decay_per_step is not None and not lr:
        raise ValueError(f"lr must be above 0 for arm {arm.name}, whose weight decay follows it")
    decay = task.weight_decay if arm.decay_per_step is None else arm.decay_per_step / lr
    decay = decay if request.weight_decay is None else request.weight_decay
    for name, value in (("lr", lr), ("weight_decay", decay)):
        check_number(name, value, 0.0)
    check_number("seed", request.seed, 0, _SEEDS, open_high=True)
    return RunConfig(
        task=task.name,
        arm=arm.name,
        ablation=request.ablation,
        seed=request.seed,
        protocol=task.protocol,
        size=task.size,
        epochs=epochs,
        max_steps=request.max_steps,
        steps_per_epoch=task.steps_per_epoch,
        total_steps=epochs * task.steps_per_epoch,
        lr=lr,
        weight_decay=decay,
        betas=task.betas,
        batch_size=task.batch_size,
        patience=task.patience,
        min_delta=task.min_delta,
        arm_settings=settings,
        threads=request.threads,
        device=request.device,
        precision=request.precision,
        processes=processes,
    )


def _check(settings: Mapping[str, Any]) -> None:
    """Let the library refuse what it does not take, before a run leaves any trace."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it comes again where the optimizer is made
        chosen(settings["modulator"], settings["learning"])


def _change(settings: dict[str, Any], name: str, value: Any, arm: Arm) -> None:
    """Set ``key`` or ``section.key``; what makes a value right is for the optimizer to say."""
    section, _, key = name.rpartition(".")
    place = settings.get(section) if section else settings
    if not isinstance(place, dict) or key not in place or isinstance(place[key], dict):
        known = [k for k, v in settings.items() if not isinstance(v, dict)]
        known += [f"{s}.{k}" for s, v in settings.items() if isinstance(v, dict) for k in v]
        raise ValueError(
            f"arm {arm.name} has no setting {name!r}; it has: {', '.join(known) or 'none'}"
            + suggestion(name, known)
        )
    place[key] = value
