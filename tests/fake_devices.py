"""Devices that this machine does not have: which tensor lies where is real, the numbers are not.

An operation on tensors of different devices is an error here as there. Registers a backend, so it
must run in a process of its own; not a test.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim.optimizer import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from metaadamw import Attention, MetaAdamW
from metaadamw.state.checkpoint import adapt_param_groups, restore_moments
from tests.learning import learning_of

NAME = "elsewhere"


def devices(names: list[str]) -> list[str]:
    """Register the backend once; "a" and "b" are two devices of it."""
    if torch._C._get_privateuse1_backend_name() != NAME:
        _setup_privateuseone_for_python_backend(NAME)
        # Numbers of up to so many entries are followed, on a device that cannot hold them.
        fake_tensor.CONSTANT_NUMEL_LIMIT = -1
    return [{"a": f"{NAME}:0", "b": f"{NAME}:1"}.get(name, name) for name in names]


class Copies(TorchFunctionMode):
    """Numbers of a device that the host reads without having waited for them."""

    def __init__(self) -> None:
        super().__init__()
        self.unwaited = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.Tensor.to and (kwargs or {}).get("non_blocking"):
            self.unwaited += result.is_cpu and not args[0].is_cpu
        return result


def steps(
    names: list[str], mode: Any, features: str, moved: bool = False, **options: Any
) -> dict[str, Any]:
    """Three steps of a layer on each device; where everything has ended up."""
    at = devices(names)
    with FakeTensorMode(), Copies() as copies:
        layers = [nn.Linear(4, 4, device=device) for device in at]
        optimizer = MetaAdamW(
            [{"params": list(layer.named_parameters())} for layer in layers],
            lr=1e-3,
            modulator=Attention(features=features),
            learning=learning_of(mode),
            capturable=True,  # the numbers that the host would read do not exist
            **options,
        )
        for step in range(3):
            for param in (p for layer in layers for p in layer.parameters()):
                param.grad = torch.ones_like(param)
            if moved and step == 2:
                for state in optimizer.state.values():
                    state["exp_avg"] = state["exp_avg"].cpu()
            optimizer.step()
        state = [optimizer.state[layer.weight] for layer in layers]
        return {
            "wanted": at,
            "modulation": str(optimizer.modulation.alpha.device),
            "moments": [str(s["exp_avg"].device) for s in state],
            "unwaited": copies.unwaited,
        }


def moved_steps(build: Any, options: Any, what: str) -> dict[str, Any]:
    """A model that moves after the optimizer is built, and back later; where all is then."""
    first, second = devices(["a", "cpu"])
    # Fake tensors remember each other, which alone is no reason not to move them.
    unknown = patch("weakref.getweakrefs", lambda _: [])
    with FakeTensorMode(), Copies() as copies, unknown:
        model = build()
        groups = [{"params": [p], "name": n} for n, p in zip("ab", model.parameters(), strict=True)]
        optimizer = MetaAdamW(groups, capturable=True, **options())
        model.to(first)
        seen = _seen(optimizer)
        _train(model, optimizer)
        found = _places(optimizer)
        model.to(second)
        seen |= {f"later {place}" for place in _seen(optimizer)}
        for state in optimizer.state.values() if what == "state as well" else ():
            state |= {key: tensor.to(second) for key, tensor in state.items()}
        _train(model, optimizer)
        return {
            "seen": seen,
            "devices": found,
            "later": _places(optimizer),
            "unwaited": copies.unwaited,
        }


def counters_after_loading(**options: Any) -> set[str]:
    """Where step counters lie that a checkpoint had on a device."""
    (device,) = devices(["a"])
    with FakeTensorMode():
        model = nn.Linear(2, 2, device=device)
        capturable = MetaAdamW(model.parameters(), capturable=True, learning="lookahead")
        _train(model, capturable)
        optimizer = MetaAdamW(model.parameters(), **options)
        # load_state_dict without what reads numbers, which do not exist.
        saved = Optimizer.state_dict(capturable)
        adapted = adapt_param_groups(saved, optimizer.param_groups)
        Optimizer.load_state_dict(optimizer, adapted)
        restore_moments(optimizer.state, adapted, list(model.parameters()))
        return {str(entry["step"].device) for entry in optimizer.state.values()}


def _train(model: nn.Module, optimizer: MetaAdamW) -> None:
    for _ in range(3):
        for param in model.parameters():
            param.grad = torch.ones_like(param)
        optimizer.step()


def _places(optimizer: MetaAdamW) -> set[str]:
    """The devices of everything that an optimizer keeps."""
    return _devices([optimizer.state_dict(), [*optimizer.modulation]])


def _seen(optimizer: MetaAdamW) -> set[str]:
    """The devices of what can be read off an optimizer."""
    weighting = optimizer.weighting
    weights = [*optimizer.modulator.parameters()]
    weights += [] if weighting is None else [*weighting.parameters()]
    return _devices([optimizer.metrics(), [*optimizer.modulation], optimizer.features, weights])


def _devices(tree: Any) -> set[str]:
    return {str(leaf.device) for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)}
