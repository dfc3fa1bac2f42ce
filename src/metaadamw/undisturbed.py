"""Evaluate a model elsewhere and leave no trace: what surrounds every meta-update."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from metaadamw.distributed import local

__all__ = ["RandomStreams", "devices_of", "undisturbed"]


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


def devices_of(model: nn.Module, params: Iterable[Tensor]) -> list[torch.device]:
    """Where a loss may draw random numbers: frozen parts may lie elsewhere than the trained."""
    return [t.device for t in (*params, *model.parameters(), *model.buffers())]


def _once(buffer: Tensor) -> Tensor:
    """Of an expanded tensor every entry once: the others lie in the same place."""
    if buffer.layout != torch.strided or 0 not in buffer.stride():
        return buffer
    sizes = zip(buffer.shape, buffer.stride(), strict=True)
    return buffer.as_strided([n if stride else min(n, 1) for n, stride in sizes], buffer.stride())


def _copy(buffer: Tensor | None) -> Tensor | None:
    if buffer is None or buffer.is_inference():  # nobody can write to these, not even to put back
        return None
    return _once(buffer.detach()).clone()


class _Module:
    """Flags, buffers and gradients of a model, to be put back."""

    def __init__(self, model: nn.Module, params: Iterable[Tensor]) -> None:
        """Note everything, then set the gradients aside."""
        self.training = [(m, m.training) for m in model.modules()]
        self.buffers = [
            (m, {k: (b, _copy(b)) for k, b in m._buffers.items()}) for m in model.modules()
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
        for param, grad, requires_grad in self.params:
            param.requires_grad_(requires_grad)
            param.grad = grad
        for module, buffers in self.buffers:
            # Replaced, new or deleted ones as well, and their order.
            module._buffers.clear()
            module._buffers.update({name: buffer for name, (buffer, _) in buffers.items()})
        # Last what can fail: a buffer that the loss has given another size.
        for _, buffers in self.buffers:
            for buffer, value in buffers.values():
                if buffer is not None and value is not None:
                    _once(buffer).copy_(value)


class Snapshot(NamedTuple):
    """What ``undisturbed`` keeps.

    Attributes:
        values: the trained parameters at θ, of sharded ones the local shard; None for a frozen one.
        grads: the gradients of the training step, None where there is none.
        streams: the random streams at the start.
    """

    values: list[Tensor | None]
    grads: list[Tensor | None]
    streams: RandomStreams


@contextmanager
def undisturbed(model: nn.Module, params: list[Tensor]) -> Iterator[Snapshot]:
    """Run a block, then put back parameters, buffers, ``.grad``, flags and random streams.

    To the last bit, also when the block raises. Inside, ``.grad`` is None, so that a loss which
    clears or accumulates gradients cannot touch those of the training step.

    A loss may also move parameters that the optimizer does not train (a momentum encoder). They are
    kept as well, unless they outweigh the trained ones, like the base under adapters: then a loss
    that moves them is an error.

    Args:
        model: whose buffers and flags are kept.
        params: the parameters that the block may change in place.

    Raises:
        RuntimeError: the block has moved a large frozen part of the model.
    """
    # Everything that can fail (out of memory) comes before anything is set aside.
    streams = RandomStreams(devices_of(model, params))
    held = {id(p) for p in params}
    trained = [p for p in params if p.requires_grad]
    others: list[Tensor] = [p for p in model.parameters() if id(p) not in held]
    others += [p for p in params if not p.requires_grad]
    others = [p for p in others if not p.is_inference()]  # nobody can write to these
    light = sum(p.numel() for p in others) <= sum(p.numel() for p in trained)
    kept = trained + others if light else trained
    shards = [local(p.detach()) for p in kept]
    values = [shard.clone() for shard in shards]
    versions = [p._version for p in others]
    grads = [p.grad for p in params]
    module = _Module(model, params)
    at = {id(p): value for p, value in zip(trained, values, strict=False)}
    try:
        yield Snapshot([at.get(id(p)) for p in params], grads, streams)
        if not light and versions != [p._version for p in others]:
            raise RuntimeError(
                "loss_fn has moved a parameter that the optimizer does not train, in a frozen part "
                "of the model that is too large to be kept during a meta-update; make it a buffer"
            )
    finally:
        # What cannot be put back must not keep the rest from being put back.
        with ExitStack() as each:
            each.callback(streams.restore)
            each.callback(module.restore)
            each.callback(torch.clear_autocast_cache)
            with torch.no_grad():
                torch._foreach_copy_(shards, values)
