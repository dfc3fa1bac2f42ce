"""What Algorithms 1 and 2 carry along: parameters, moments, step counts and groups, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ReferenceGroup:
    """One group P_g: the names of its parameters and the hyperparameters they share.

    Attributes:
        names: Names of the parameters of the group.
        lr: Learning rate eta.
        betas: Decay rates of the two moments (beta_1, beta_2).
        eps: The small constant epsilon.
        weight_decay: Weight decay lambda.
        depth: Normalised depth of the group in [0, 1]; 0.5 where it is unknown.
    """

    names: tuple[str, ...]
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2
    depth: float = 0.5


@dataclass(frozen=True, kw_only=True)
class ReferenceState:
    """The parameters theta, the moments m and v, and the completed steps of each parameter.

    A parameter that has never been stepped may be missing from ``exp_avg``, ``exp_avg_sq`` and
    ``steps``: its moments are zero and its count is 0.
    """

    parameters: Mapping[str, Tensor]
    exp_avg: Mapping[str, Tensor]
    exp_avg_sq: Mapping[str, Tensor]
    steps: Mapping[str, int]

    def moments(self, name: str) -> tuple[Tensor, Tensor, int]:
        """The stored m, v and step count of one parameter, zero where there are none."""
        zero = torch.zeros_like(self.parameters[name])
        return (
            self.exp_avg.get(name, zero),
            self.exp_avg_sq.get(name, zero),
            self.steps.get(name, 0),
        )


def fresh_state(parameters: Mapping[str, Tensor]) -> ReferenceState:
    """The state before the first step: copies of the parameters and no moments."""
    copies = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    return ReferenceState(parameters=copies, exp_avg={}, exp_avg_sq={}, steps={})


def groups_from_optimizer(
    optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, Tensor]]
) -> list[ReferenceGroup]:
    """Read the groups of any ``torch.optim`` optimizer of the AdamW kind."""
    names = {parameter: name for name, parameter in named_parameters}
    return [
        ReferenceGroup(
            names=tuple(names[parameter] for parameter in group["params"]),
            lr=float(group["lr"]),
            betas=(float(group["betas"][0]), float(group["betas"][1])),
            eps=float(group["eps"]),
            weight_decay=float(group["weight_decay"]),
            depth=float(group.get("depth", 0.5)),
        )
        for group in optimizer.param_groups
    ]


def state_from_optimizer(
    optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, Tensor]]
) -> ReferenceState:
    """Copy parameters, moments and step counts out of any optimizer of the AdamW kind."""
    names = {parameter: name for name, parameter in named_parameters}
    parameters, exp_avg, exp_avg_sq, steps = {}, {}, {}, {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[parameter]
            parameters[name] = parameter.detach().clone()
            stored = optimizer.state.get(parameter, {})
            if "exp_avg" in stored:
                exp_avg[name] = stored["exp_avg"].detach().clone()
                exp_avg_sq[name] = stored["exp_avg_sq"].detach().clone()
                steps[name] = int(stored["step"])
    return ReferenceState(
        parameters=parameters, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq, steps=steps
    )
