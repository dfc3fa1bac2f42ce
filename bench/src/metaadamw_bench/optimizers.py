"""How the arms' optimizers are made; each function takes a model and a resolved configuration."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from metaadamw import MetaAdamW, fine_grained_groups
from metaadamw.learning.meta_optimizer import MetaOptimizer
from metaadamw.learning.windows import GROWTH, WindowsLearning
from metaadamw_bench.config import RunConfig
from metaadamw_bench.replay import schedule

__all__ = [
    "Stepper",
    "adamw",
    "adamw_cosine",
    "adamw_inverse_time",
    "first_windows",
    "has_hidden_matrices",
    "lowest_log_alpha",
    "metaadamw",
    "metaadamw_cosine",
    "muon",
    "nadam",
    "prodigy",
    "replay",
    "schedule_free",
]


class Stepper(Protocol):
    """What a run needs of an optimizer."""

    def zero_grad(self) -> None:
        """Clear the gradients."""

    def step(self) -> Any:
        """Update the parameters."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a ``state_dict``."""


class Chain:
    """Several optimizers, or an optimizer and its schedule, that step one after another."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = parts

    def zero_grad(self) -> None:
        """Clear the gradients of all parts that have any."""
        for part in self.parts:
            if isinstance(part, torch.optim.Optimizer):
                part.zero_grad()

    def step(self) -> None:
        """Step every part."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The states of all parts."""
        return {str(index): part.state_dict() for index, part in enumerate(self.parts)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from the states of all parts."""
        for index, part in enumerate(self.parts):
            part.load_state_dict(state_dict[str(index)])


def adamw(model: nn.Module, config: RunConfig) -> Stepper:
    """``torch.optim.AdamW``."""
    return _adamw(model.parameters(), config)


def _adamw(params: Iterable[nn.Parameter], config: RunConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        params, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
    )


def adamw_cosine(model: nn.Module, config: RunConfig) -> Stepper:
    """AdamW whose learning rate falls along half a cosine from lr to zero."""
    optimizer = _adamw(model.parameters(), config)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_cosine, config.total_steps))
    return Chain([optimizer, schedule])


def _cosine(total: int, step: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(step / total, 1)))


def adamw_inverse_time(model: nn.Module, config: RunConfig) -> Stepper:
    """AdamW at the lowest factors that the first windows allowed, from the first step on."""
    optimizer = _adamw(model.parameters(), config)
    start, first = config.arm_settings["alpha_start"], config.arm_settings["window"]

    def lowest(step: int) -> float:
        return math.exp(lowest_log_alpha(start, step, first))

    return Chain([optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lowest)])


def lowest_log_alpha(alpha_start: float, steps: int, first: int) -> float:
    r"""The lower limit of the first windows: from where windows grow on it falls like 1/t.

    .. math:: \alpha_g(t) \ge \alpha_{start}\min(1, t_0 / t)
    """
    return math.log(alpha_start) - math.log(max(1.0, GROWTH * steps / first))


def metaadamw_cosine(model: nn.Module, config: RunConfig) -> Stepper:
    """``metaadamw``, its learning rate as in ``adamw_cosine``."""
    return _follow_cosine(metaadamw(model, config), config)


def _follow_cosine(optimizer: MetaAdamW, config: RunConfig) -> MetaAdamW:
    def follow(*_: Any) -> None:
        # From the step alone: nothing that a checkpoint would have to hold.
        for group in optimizer.param_groups:
            group["lr"] = config.lr * _cosine(config.total_steps, optimizer.steps)

    optimizer.register_step_pre_hook(follow)
    return optimizer


def _groups(model: nn.Module, grouping: str) -> list[dict[str, Any]]:
    """One group of all ("native"), one per "layer" or "tensor", or those of a kind and depth."""
    if grouping in ("extended", "paper"):
        return fine_grained_groups(model, kinds=cast(Literal["extended", "paper"], grouping))
    if grouping == "native":
        return [{"params": list(model.parameters())}]
    groups: dict[str, list[nn.Parameter]] = {}
    for name, param in model.named_parameters():
        key = name.rpartition(".")[0] if grouping == "layer" else name
        groups.setdefault(key, []).append(param)
    return [{"params": params, "name": name} for name, params in groups.items()]


def metaadamw(model: nn.Module, config: RunConfig) -> MetaAdamW:
    """``MetaAdamW`` as ``config.arm_settings`` says."""
    settings = config.arm_settings
    return MetaAdamW(
        _groups(model, settings["grouping"]),
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        modulator=settings["modulator"],
        learning=settings["learning"],
        total_steps=config.total_steps,
        seed=config.seed,
    )


def first_windows(model: nn.Module, config: RunConfig) -> MetaAdamW:
    """``metaadamw`` with a signal that asks for no factor below ``lowest_log_alpha``."""
    optimizer = metaadamw(model, config)
    controller = optimizer._controller
    learning = cast(WindowsLearning, controller.learning)
    move, first = learning.move, learning.options.window
    start = config.arm_settings["modulator"]["alpha_start"]

    def limited(by: MetaOptimizer, features: Tensor, *signals: Tensor) -> bool | Tensor:
        lowest = lowest_log_alpha(start, controller.steps, first)
        highest = (controller.last_modulation.alpha.log() - lowest) / by.lr
        return move(by, features, torch.minimum(signals[0], highest), *signals[1:])

    learning.move = limited  # type: ignore[assignment, method-assign]
    return optimizer


def replay(model: nn.Module, config: RunConfig) -> MetaAdamW:
    """``MetaAdamW`` with a part of the factors of another run."""
    settings = config.arm_settings
    return MetaAdamW(
        fine_grained_groups(model, kinds=settings["grouping"]),
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        modulator=schedule(settings["factors"], settings["part"], config.total_steps),
    )


def nadam(model: nn.Module, config: RunConfig) -> Stepper:
    """``torch.optim.NAdam`` with decoupled weight decay."""
    return torch.optim.NAdam(
        model.parameters(),
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        decoupled_weight_decay=True,
    )


def muon(model: nn.Module, config: RunConfig) -> Stepper:
    """``torch.optim.Muon`` for the hidden matrices, AdamW for everything else.

    Muon's updates are scaled to the size of AdamW's, so that both take the same learning rate.
    """
    hidden = _hidden_matrices(model)
    taken = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if id(p) not in taken]
    parts: list[torch.optim.Optimizer] = [_adamw(rest, config)] if rest else []
    parts.append(
        torch.optim.Muon(
            hidden,
            lr=config.lr,
            weight_decay=config.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
    )
    return Chain(parts)


def has_hidden_matrices(model: nn.Module) -> bool:
    """Whether Muon has anything to do."""
    return hasattr(torch.optim, "Muon") and len(_hidden_matrices(model)) > 0


def _hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Every matrix but embeddings and the last linear layer."""
    embeddings = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    linears = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    outer = {id(weight) for weight in (*embeddings, *linears[-1:])}
    return [p for p in model.parameters() if p.ndim == 2 and id(p) not in outer]


def schedule_free(model: nn.Module, config: RunConfig) -> Stepper:
    """``schedulefree.AdamWScheduleFree``."""
    optimizer: Stepper = importlib.import_module("schedulefree").AdamWScheduleFree(
        model.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
    )
    return optimizer


def prodigy(model: nn.Module, config: RunConfig) -> Stepper:
    """``prodigyopt.Prodigy``, which finds its learning rate itself."""
    optimizer: Stepper = importlib.import_module("prodigyopt").Prodigy(
        model.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
    )
    return optimizer
