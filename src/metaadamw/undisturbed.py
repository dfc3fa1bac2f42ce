"""Evaluate a model elsewhere and leave no trace: what surrounds every meta-update."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["RandomStreams", "undisturbed"]


class RandomStreams:
    """The random streams a loss may draw from: Python, NumPy where loaded, torch on every device.

    Args:
        devices: devices whose generators are included.
    """

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self.devices = [d for d in dict.fromkeys(devices) if d.type not in ("cpu", "meta")]
        self.python = random.getstate()
        # The library does not depend on NumPy, but a loss that augments its batch may.
        self.numpy = sys.modules["numpy"].random.get_state() if "numpy" in sys.modules else None
        self.cpu = torch.get_rng_state()
        self.accelerators = [torch.get_device_module(d).get_rng_state(d) for d in self.devices]

    def restore(self) -> None:
        """Put every stream back to where it was."""
        random.setstate(self.python)
        if self.numpy is not None:
            sys.modules["numpy"].random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        for device, state in zip(self.devices, self.accelerators, strict=True):
            torch.get_device_module(device).set_rng_state(state, device)


class _Module:
    """Flags, buffers and gradients of a model, to be put back."""

    def __init__(self, model: nn.Module, params: Iterable[Tensor]) -> None:
        """Note everything, then set the gradients aside."""
        self.training = [(m, m.training) for m in model.modules()]
        self.buffers = [
            (m, {k: (b, None if b is None else b.detach().clone()) for k, b in m._buffers.items()})
            for m in model.modules()
        ]
        # Parameters of the optimizer that the model does not own (a loss with weights of its own)
        # count as well.
        unique = {id(p): p for p in (*model.parameters(), *params)}
        self.params = [(p, p.grad, p.requires_grad) for p in unique.values()]
        for param, _, _ in self.params:
            param.grad = None

    @torch.no_grad()
    def restore(self) -> None:
        for module, training in self.training:
            module.training = training
        for module, buffers in self.buffers:
            for buffer, value in buffers.values():
                if buffer is not None and value is not None:
                    buffer.copy_(value)
            # Replaced, new or deleted ones as well, and their order.
            module._buffers.clear()
            module._buffers.update({name: buffer for name, (buffer, _) in buffers.items()})
        for param, grad, requires_grad in self.params:
            param.requires_grad_(requires_grad)
            param.grad = grad


class Snapshot(NamedTuple):
    """What ``undisturbed`` keeps.

    Attributes:
        values: the parameters at θ.
        streams: the random streams at the start.
    """

    values: list[Tensor]
    streams: RandomStreams


@contextmanager
def undisturbed(model: nn.Module, params: list[Tensor]) -> Iterator[Snapshot]:
    """Run a block, then put back parameters, buffers, ``.grad``, flags and random streams.

    To the last bit, also when the block raises. Inside, ``.grad`` is None, so that a loss which
    clears or accumulates gradients cannot touch those of the training step.

    Args:
        model: whose buffers and flags are kept.
        params: the parameters that the block may change in place.
    """
    # Everything that can fail (out of memory) comes before anything is set aside.
    streams = RandomStreams(p.device for p in params)
    values = [p.detach().clone() for p in params]
    module = _Module(model, params)
    try:
        yield Snapshot(values, streams)
    finally:
        with torch.no_grad():
            torch._foreach_copy_(params, values)
        module.restore()
        streams.restore()
