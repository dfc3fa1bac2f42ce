"""Our own small arithmetic keeps its precision inside an autocast region of the user's."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

__all__ = ["full_precision"]


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A context in which autocast is off; the user's loss is never evaluated inside one.

    Args:
        device: where the arithmetic takes place.
    """
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
