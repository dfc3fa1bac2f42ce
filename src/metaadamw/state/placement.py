"""Where everything that learns lives: with the parameters, wherever those go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from metaadamw.grouping.validation import can_move

__all__ = ["home"]


def home(param_groups: Sequence[Mapping[str, Any]]) -> tuple[torch.device, torch.dtype]:
    """The device of the first parameter; and float64 where one has that, else float32."""
    everything = [p for group in param_groups for p in group["params"]]
    trained = [p for p in everything if p.requires_grad]
    params = trained or [p for p in everything if can_move(p)]
    if not params:
        return torch.device("cpu"), torch.float32
    double = any(p.dtype in (torch.float64, torch.complex128) for p in params)
    return params[0].device, torch.float64 if double else torch.float32
