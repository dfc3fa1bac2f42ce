"""The online signal as one call on a CPU: a few numbers, but fifty operations of torch."""

from __future__ import annotations

import ctypes

from torch import Tensor

from metaadamw.kernels.cpu import in_memory, library

__all__ = ["signal"]


def signal(sums: Tensor, rates: Tensor, decays: Tensor) -> tuple[Tensor, Tensor] | None:
    """``online_signal`` from the groups' products; None where torch has to do it.

    Args:
        sums: the ``ONLINE_PRODUCTS`` of every group, [6, G].
        rates: of the last step, [G].
        decays: likewise.
    """
    tensors = (sums, rates, decays)
    kernels = library(sums.dtype)
    if kernels is None or not all(in_memory(t) and t.dtype is sums.dtype for t in tensors):
        return None
    signals = sums.new_empty(2, len(rates))
    kernels.online_signal(
        ctypes.c_int64(len(rates)), *(ctypes.c_void_p(t.data_ptr()) for t in (*tensors, signals))
    )
    alpha, beta = signals.unbind(0)
    return alpha, beta
