"""Losses that count: what a framework's own objects note in a training step, put back."""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["kept"]

_DICTS = (dict, defaultdict, OrderedDict, Counter)
_LONG = 1000
"""Longer is a history or a data set: its entries are put back, not what is inside of them."""


@contextmanager
def kept(*owners: Any, leave_out: tuple[str, ...] = ()) -> Iterator[None]:
    """Run a block, then put back the attributes of ``owners``, also when it raises.

    New attributes go, changed ones are what they were; tensors, arrays, dicts, lists, sets and
    deques, also inside of each other, hold what they held. Objects of other kinds are the same
    objects, whatever has happened inside of them.

    Args:
        owners: objects with attributes; of a module those that every module has are not its own.
        leave_out: names of attributes that hold data sets.
    """
    with ExitStack() as undo:
        seen: set[int] = set()
        for owner in owners:
            attributes = vars(owner)
            before = dict(attributes)
            undo.callback(_put_back, attributes, before)
            passed = {*leave_out, *(_of_every_module() if isinstance(owner, nn.Module) else ())}
            for name, value in before.items():
                if name not in passed:
                    _keep(value, undo.callback, seen)
        yield


def _of_every_module() -> set[str]:
    return {*vars(nn.Module())}


def _put_back(attributes: dict[str, Any], before: dict[str, Any]) -> None:
    for name in attributes.keys() - before.keys():
        del attributes[name]
    for name, value in before.items():
        if name not in attributes or attributes[name] is not value:
            attributes[name] = value


def _keep(value: Any, undo: Callable[..., object], seen: set[int]) -> None:
    """Note how to put back what ``value`` holds."""
    kind = type(value)
    numpy = sys.modules.get("numpy")
    if kind is Tensor:
        if not value.is_inference():  # nobody can write to these
            undo(_refill_tensor, value, value.detach().clone(), value._version)
    elif numpy is not None and kind is numpy.ndarray:
        if value.flags.writeable:
            undo(_refill_array, value, value.copy())
    elif kind in (*_DICTS, list, set, deque, tuple) and id(value) not in seen:
        seen.add(id(value))
        inside = list(value.values()) if kind in _DICTS else list(value)
        if kind in _DICTS:
            undo(_refill_dict, value, dict(value))
        elif kind is list:
            undo(value.__setitem__, slice(None), inside)
        elif kind is set:
            undo(_refill, value, inside, value.update)
        elif kind is deque:
            undo(_refill, value, inside, value.extend)
        if len(inside) <= _LONG:
            for entry in inside:
                _keep(entry, undo, seen)


def _refill_tensor(tensor: Tensor, content: Tensor, version: int) -> None:
    if tensor._version != version:
        with torch.no_grad():
            tensor.detach().copy_(content)


def _refill_array(array: Any, content: Any) -> None:
    array[...] = content


def _refill_dict(value: dict[Any, Any], content: dict[Any, Any]) -> None:
    value.clear()
    for key, entry in content.items():  # a Counter's update would add
        value[key] = entry


def _refill(value: Any, content: list[Any], fill: Callable[[list[Any]], None]) -> None:
    value.clear()
    fill(content)
