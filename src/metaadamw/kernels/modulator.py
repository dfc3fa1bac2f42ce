"""The modulator in one call on a CPU: features to factors, and an update of it by Adam."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from metaadamw.kernels.cpu import addresses, in_memory, library
from metaadamw.kernels.encoder import encoder_shape, has_encoder
from metaadamw.meta_optimizer import BETAS, EPS, MetaOptimizer

if TYPE_CHECKING:
    from metaadamw.modulator import BaseModulator, Modulator

__all__ = ["learn", "modulate"]


class _Settings(ctypes.Structure):
    _fields_ = (
        *((n, ctypes.c_int64) for n in ("features", "embedding", "gated", "frozen_gates")),
        *((n, ctypes.c_int64) for n in ("log_scale", "mean_preserving")),
        *((n, ctypes.c_double) for n in ("alpha_range", "beta_range")),
        *((n, ctypes.c_double) for n in ("weight_decay", "gate_sparsity")),
        *((n, ctypes.c_double) for n in ("lr", "beta1", "beta2", "eps", "t")),
    )


def modulate(modulator: Modulator, features: Tensor) -> Tensor | None:
    """Eqs. 5–9: the factors as rows, [4, G]; None where torch has to do it.

    Args:
        modulator: the modulator.
        features: [G, F], without a gradient.
    """
    weights = modulator.weights
    if not _plain(features, weights):
        return None
    result = features.new_empty(4, len(features))
    settings = _Settings(*_modulator_settings(modulator))
    failed = library(features.dtype).modulate(  # type: ignore[union-attr]  # it has an encoder
        *_arguments(modulator, settings, features),
        addresses(weights),
        ctypes.c_void_p(result.data_ptr()),
    )
    if failed:
        raise MemoryError("no memory for the modulator")
    return result


def learn(
    modulator: BaseModulator,
    optimizer: MetaOptimizer,
    learned: Sequence[Tensor],
    features: Tensor,
    signals: Sequence[Tensor],
    weight_decay: float,
    gate_sparsity: float,
) -> bool | None:
    """A step along ``modulator_gradient``, whose arguments these are.

    Args:
        modulator: the modulator.
        optimizer: what moves it.
        learned: what it moves, the modulator's parameters first.
        features: see there; so are the rest.
        signals: see there.
        weight_decay: see there.
        gate_sparsity: see there.

    Returns:
        Whether all was finite; else nothing has changed. None where torch has to do it.
    """
    kernel = optimizer.kind == "adam" and modulator.config.layers
    if not kernel or not _plain(features, [*signals, *learned]):
        return None
    attention = cast("Modulator", modulator)
    exp_avgs, exp_avg_sqs, step_count = optimizer.prepared(learned)
    settings = _Settings(
        *_modulator_settings(attention),
        weight_decay,
        gate_sparsity,
        optimizer.lr,
        *BETAS,
        EPS,
        step_count.item() + 1,
    )
    shape, settings_pointer, features_pointer = _arguments(attention, settings, features)
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


def _plain(features: Tensor, others: Sequence[Tensor]) -> bool:
    """Whether the kernels can read these features, and the others as they lie in memory."""
    same = all(t.dtype is features.dtype and in_memory(t) for t in others)
    return same and has_encoder(features)


def _modulator_settings(modulator: Modulator) -> tuple[Any, ...]:
    """The first fields of ``_Settings``."""
    config = modulator.config
    return (
        modulator.num_features,
        modulator.embedding_dim,
        config.feature_gating,
        modulator.frozen_gates,
        config.scale == "log",
        config.mean_preserving,
        config.alpha_range,
        config.beta_range,
    )


def _arguments(modulator: Modulator, settings: _Settings, features: Tensor) -> tuple[Any, ...]:
    """What both kernels begin with: the shape, the settings, the features."""
    shape = encoder_shape(len(features), modulator.weights, modulator.config.heads)
    return shape, ctypes.byref(settings), ctypes.c_void_p(features.data_ptr())
