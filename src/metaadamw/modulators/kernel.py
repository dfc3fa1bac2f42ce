"""The attention module in one call on a CPU: features to factors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from metaadamw.kernels.cpu import addresses, in_memory, library
from metaadamw.modulators.encoder_kernel import encoder_shape, has_encoder

__all__ = ["Settings", "arguments", "modulate", "modulator_settings", "plain"]


class _Attention(Protocol):
    """What is asked of an ``AttentionModulator``."""

    options: Any
    num_features: int
    embedding_dim: int
    frozen_gates: bool

    @property
    def weights(self) -> list[Tensor]: ...


class Settings(ctypes.Structure):
    """What the kernels must know beside tensors; C zeroes what is not given."""

    _fields_ = (
        *((n, ctypes.c_int64) for n in ("features", "embedding", "gated", "frozen_gates")),
        *((n, ctypes.c_int64) for n in ("log_scale", "mean_preserving")),
        *((n, ctypes.c_double) for n in ("alpha_range", "beta_range")),
        *((n, ctypes.c_double) for n in ("weight_decay", "gate_sparsity")),
        *((n, ctypes.c_double) for n in ("lr", "beta1", "beta2", "eps", "t")),
    )


def modulate(modulator: _Attention, features: Tensor) -> Tensor | None:
    """Eqs. 5–9: the factors as rows, [4, G]; None where torch has to do it.

    Args:
        modulator: the modulator.
        features: [G, F], without a gradient.
    """
    weights = modulator.weights
    if not plain(features, weights):
        return None
    result = features.new_empty(4, len(features))
    settings = Settings(*modulator_settings(modulator))
    failed = library(features.dtype).modulate(  # type: ignore[union-attr]  # it has an encoder
        *arguments(modulator, settings, features),
        addresses(weights),
        ctypes.c_void_p(result.data_ptr()),
    )
    if failed:
        raise MemoryError("no memory for the modulator")
    return result


def plain(features: Tensor, others: Sequence[Tensor]) -> bool:
    """Whether the kernels can read these features, and the others as they lie in memory."""
    same = all(t.dtype is features.dtype and in_memory(t) for t in others)
    return same and has_encoder(features)


def modulator_settings(modulator: _Attention) -> tuple[Any, ...]:
    """The first fields of ``Settings``."""
    options = modulator.options
    return (
        modulator.num_features,
        modulator.embedding_dim,
        options.feature_gating,
        modulator.frozen_gates,
        options.scale == "log",
        options.mean_preserving,
        options.alpha_range,
        options.beta_range,
    )


def arguments(modulator: _Attention, settings: Settings, features: Tensor) -> tuple[Any, ...]:
    """What both kernels begin with: the shape, the settings, the features."""
    shape = encoder_shape(len(features), modulator.weights, modulator.options.heads)
    return shape, ctypes.byref(settings), ctypes.c_void_p(features.data_ptr())
