"""The Transformer encoder over the groups as one call on a CPU, forward and backward."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metaadamw.kernels.cpu import in_memory, library, pointer_array

__all__ = ["encode", "has_encoder"]

_MOST_GROUPS = 128
"""Beyond, the matrix products of torch are faster."""


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("layers", "groups", "dim", "heads", "hidden")]


def has_encoder(features: Tensor) -> bool:
    """Whether there is a kernel for these features, [G, D]."""
    few = len(features) <= _MOST_GROUPS
    return few and in_memory(features) and library(features.dtype) is not None


def encode(features: Tensor, tensors: Sequence[Tensor], heads: int) -> Tensor:
    """Features [G, D] to Z [G, D]; with a gradient, but no second one.

    Args:
        features: where ``has_encoder``.
        tensors: the twelve stacked tensors of the encoder, each [L, …].
        heads: attention heads, a divisor of D.
    """
    encoded: Tensor = _Encoder.apply(heads, features, *tensors)  # type: ignore[no-untyped-call]
    return encoded


class _Encoder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: int, features: Tensor, *tensors: Tensor) -> Tensor:
        tensors = tuple(t.contiguous() for t in tensors)
        groups, dim = features.shape
        layers, hidden = tensors[8].shape[:2]
        ctx.shape = _Shape(layers, groups, dim, heads, hidden)
        kept = features.new_empty(layers + 1, dim, groups)
        kept[0] = features.T
        _call("encoder", features.dtype, ctx.shape, _pointers(tensors), _pointer(kept))
        ctx.save_for_backward(kept, *tensors)
        return kept[-1].T.contiguous()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, output_slope: Tensor) -> tuple[Tensor | None, ...]:
        kept, *tensors = ctx.saved_tensors
        slope = output_slope.T.contiguous()
        gradients = [torch.empty_like(t) for t in tensors]
        _call(
            "encoder_backward",
            kept.dtype,
            *(ctx.shape, _pointers(tensors), _pointer(kept), _pointer(slope), _pointers(gradients)),
        )
        return (None, slope.T, *gradients)


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return pointer_array([t.data_ptr() for t in tensors])


def _call(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    if getattr(library(dtype), name)(*arguments):
        raise MemoryError(f"no memory for the {name} of the modulator")
