"""The tensors behind one token: what the rooms see of a param group (Sec. 3.2).

Complex parameters appear as their real view, distributed ones as this process's shard; a missing
gradient or moment is ``None``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metaadamw.grouping.validation import can_move, check_state_devices
from metaadamw.parallel.shards import is_distributed, local, local_gradient
from metaadamw.state.master_weights import LOW_BITS

__all__ = ["DISPLACEMENT", "WINDOW_KEYS", "WINDOW_START", "Token", "real_view", "view"]

WINDOW_START, DISPLACEMENT = "window_start", "displacement"
WINDOW_KEYS = (WINDOW_START, DISPLACEMENT)
"""What windows keep in the state of a parameter: where one began, how far the last one went."""


def real_view(tensor: Tensor) -> Tensor:
    """A complex tensor as pairs of reals, any other as it is."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def view(tensor: Tensor) -> Tensor:
    """A tensor as the rooms see it: its local shard, as reals."""
    return real_view(local(tensor))


def _nothing(param: Tensor) -> Tensor:
    """Stands for a frozen parameter of which nothing can be read."""
    return torch.zeros(0, device="cpu")


def _value(grad: Tensor) -> Tensor:
    """A gradient whose memory is its value: no sign or conjugation is still to be applied."""
    if type(grad) is not Tensor or grad.layout != torch.strided:
        return grad  # a subclass sees to that itself; another layout is refused elsewhere
    if grad._is_zerotensor():
        return torch.zeros(grad.shape, dtype=grad.dtype, device=grad.device)
    return grad.resolve_conj().resolve_neg()


@dataclass
class Token:
    """Parameters, gradients and AdamW state of one param group, index by index.

    Args:
        group: the param group (hyperparameters are read from it).
        params: parameters θ.
        grads: gradients, None where missing.
        exp_avgs: first moments m, None where there is no state yet.
        exp_avg_sqs: second moments v, likewise.
        steps: step counters, likewise.
        low_bits: lower halves of float32 master weights, None where there are none.
        window_starts: parameters at the start of the window, likewise.
        displacements: how far the window before went, likewise.
    """

    group: dict[str, Any]
    params: list[Tensor]
    grads: list[Tensor | None]
    exp_avgs: list[Tensor | None]
    exp_avg_sqs: list[Tensor | None]
    steps: list[Tensor | None]
    low_bits: list[Tensor | None]
    window_starts: list[Tensor | None]
    displacements: list[Tensor | None]

    @classmethod
    def of(
        cls,
        group: dict[str, Any],
        state: dict[Tensor, dict[str, Any]],
        grads: Sequence[Tensor | None] | None = None,
        *,
        maximize: bool = False,
    ) -> Token:
        """The token of ``group``, with ``.grad`` or the given ``grads``; negated to maximise."""
        params = [p if can_move(p) else _nothing(p) for p in group["params"]]
        if grads is None:
            grads = [p.grad for p in params]
        grads = [None if g is None else _value(g) for g in grads]
        if maximize:
            grads = [None if g is None else -g for g in grads]
        # .get, because indexing the defaultdict would create state for parameters that never had a
        # gradient.
        states = [state.get(p) or {} for p in params]
        check_state_devices(params, states)
        if any(p.is_complex() or is_distributed(p) for p in params):
            return cls(
                group,
                [view(p) for p in params],
                [
                    None if g is None else real_view(local_gradient(g, p))
                    for g, p in zip(grads, params, strict=True)
                ],
                [view(s["exp_avg"]) if s else None for s in states],
                [view(s["exp_avg_sq"]) if s else None for s in states],
                [s.get("step") for s in states],
                [local(s[LOW_BITS]) if LOW_BITS in s else None for s in states],
                [view(s[WINDOW_START]) if WINDOW_START in s else None for s in states],
                [view(s[DISPLACEMENT]) if DISPLACEMENT in s else None for s in states],
            )
        return cls(
            group,
            params,
            list(grads),
            [s.get("exp_avg") for s in states],
            [s.get("exp_avg_sq") for s in states],
            [s.get("step") for s in states],
            [s.get(LOW_BITS) for s in states],
            [s.get(WINDOW_START) for s in states],
            [s.get(DISPLACEMENT) for s in states],
        )
