"""Evaluate a model elsewhere and leave no trace: what surrounds every meta-update."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from metaadamw.learning.lookahead.run_modules import RunModules
from metaadamw.parallel.shards import local

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
    clears or accumulates gradients cannot touch those of the training step, and backward hooks
    rest. Buffers, flags, ``.grad`` and hooks are those of every module that runs in the block, in
    this thread, whoever owns it (a discriminator in the loss of a generator).

    The random streams belong to the process: what other threads draw from them meanwhile, they draw
    again afterwards.

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
    modules = RunModules()
    at = {id(p): value for p, value in zip(trained, values, strict=False)}
    try:
        modules.keep(model)
        modules.keep_params(params)  # also those that the model does not own
        with modules.watching():
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
            each.callback(modules.restore)
            each.callback(torch.clear_autocast_cache)
            with torch.no_grad():
                torch._foreach_copy_(shards, values)
