"""An update of the attention module by Adam as one call on a CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from metaadamw.kernels.cpu import addresses, library
from metaadamw.learning.meta_optimizer import BETAS, EPS, MetaOptimizer
from metaadamw.modulators.attention import AttentionModulator
from metaadamw.modulators.base import Modulator
from metaadamw.modulators.kernel import Settings, arguments, modulator_settings, plain

__all__ = ["learn"]


def learn(
    modulator: Modulator,
    optimizer: MetaOptimizer,
    learned: Sequence[Tensor],
    features: Tensor,
    signals: Sequence[Tensor],
    weight_decay: float,
) -> bool | None:
    """A step along ``modulator_gradient``, whose arguments these are.

    Args:
        modulator: the modulator.
        optimizer: what moves it.
        learned: what it moves, the modulator's parameters first.
        features: see there; so are the rest.
        signals: see there.
        weight_decay: see there.

    Returns:
        Whether all was finite; else nothing has changed. None where torch has to do it.
    """
    if optimizer.kind != "adam" or not isinstance(modulator, AttentionModulator):
        return None
    if not plain(features, [*signals, *learned]):
        return None
    exp_avgs, exp_avg_sqs, step_count = optimizer.prepared(learned)
    settings = Settings(
        *modulator_settings(modulator),
        weight_decay,
        modulator.gate_sparsity(weight_decay),
        optimizer.lr,
        *BETAS,
        EPS,
        step_count.item() + 1,
    )
    shape, settings_pointer, features_pointer = arguments(modulator, settings, features)
    failed = library(features.dtype).learn(  # type: ignore[union-attr]  # it has an encoder
        shape,
        settings_pointer,
        ctypes.c_int64(len(learned)),
        (ctypes.c_int64 * len(learned))(*[t.numel() for t in learned]),
        features_pointer,
        *(addresses(column) for column in (signals, learned, exp_avgs, exp_avg_sqs)),
    )
    if failed == 1:
        raise MemoryError("no memory for an update of the modulator")
    if failed:
        return False
    step_count += 1
    torch.autograd.graph.increment_version(learned)
    return True
