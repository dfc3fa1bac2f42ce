"""All or nothing: whatever fails inside a step leaves everything as it was before it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["all_or_nothing"]


@contextmanager
def all_or_nothing(
    objects: Iterable[object], mappings: Iterable[dict[Any, Any]], tensors: Sequence[Tensor]
) -> Iterator[None]:
    """Run a block; if it raises, put everything back and let it raise.

    Args:
        objects: whose attributes the block may replace.
        mappings: dicts that it may add to, or replace entries of.
        tensors: small ones, which it may write to in place.
    """
    attributes = [vars(thing) for thing in objects] + list(mappings)
    before = [dict(place) for place in attributes]
    values = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    except BaseException:
        for place, entries in zip(attributes, before, strict=True):
            place.clear()
            place.update(entries)
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
        raise
