"""AdamW's state of a parameter: step counter and moments, as in torch, in float32 at least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from metaadamw.parallel.shards import Shards, local
from metaadamw.state.master_weights import LOW_BITS, keeps_low_bits

__all__ = ["create_state", "moment_dtype", "only_creates_state"]


def moment_dtype(param: Tensor) -> torch.dtype:
    """Moments of half-precision parameters are kept in float32: v underflows otherwise."""
    return torch.float32 if param.dtype in (torch.bfloat16, torch.float16) else param.dtype


def counter_device(group: Mapping[str, Any], param: Tensor) -> torch.device:
    """Where the step counters of a parameter lie: on the host, unless a kernel must read them."""
    return param.device if group["capturable"] or group["fused"] else torch.device("cpu")


def create_state(
    param_groups: Sequence[Mapping[str, Any]],
    state: dict[Tensor, dict[str, Any]],
    *,
    windows: bool = False,
) -> None:
    """Zero state for every parameter that has a gradient for the first time.

    Args:
        param_groups: the optimizer's groups.
        state: its state, a ``defaultdict``.
        windows: also what ``metaadamw.learning.windows`` keeps.
    """
    for group in param_groups:
        for param in group["params"]:
            if param.grad is None:
                continue
            entry = state[param]
            if not entry:
                dtype = moment_dtype(param)
                device = counter_device(group, param)
                entry["step"] = torch.zeros((), device=device, dtype=torch.float32)
                entry["exp_avg"] = torch.zeros_like(param, dtype=dtype)
                entry["exp_avg_sq"] = torch.zeros_like(param, dtype=dtype)
            if keeps_low_bits(group, param):
                low_bits = entry.get(LOW_BITS)
                if low_bits is None or low_bits.shape != param.shape:
                    entry[LOW_BITS] = torch.zeros_like(param, dtype=torch.int16)


def only_creates_state(
    param_groups: Sequence[Mapping[str, Any]], shards: Shards | None = None
) -> bool:
    """Whether this is the step that distributed checkpointing takes for the sake of the state.

    It has lr = 0 and zero gradients, on all processes, and training must not see it.
    """
    if any(float(group["lr"]) != 0.0 for group in param_groups):
        return False
    grads = [p.grad for group in param_groups for p in group["params"] if p.grad is not None]
    nonzero = torch.tensor(float(any(bool(local(grad).any()) for grad in grads)), device="cpu")
    return not (nonzero if shards is None else shards.total(nonzero))
