"""The Transformer encoder over the groups as one call on a CPU, forward and backward."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metaadamw.kernels.cpu import addresses, in_memory, library

__all__ = ["encode", "encoder_shape", "has_encoder"]

_MOST_GROUPS = 128
"""Beyond, the matrix products of torch are faster."""


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("layers", "groups", "dim", "heads", "hidden")]


def has_encoder(features: Tensor) -> bool:
    """Whether there is a kernel for these features, [G, D]."""
    few = len(features) <= _MOST_GROUPS
    return few and in_memory(features) and library(features.dtype) is not None


def encoder_shape(groups: int, tensors: Sequence[Tensor], heads: int) -> ctypes.Structure:
    """The kernels' first argument; the twelve stacked tensors come first."""
    layers, hidden, dim = tensors[8].shape
    return _Shape(layers, groups, dim, heads, hidden)


def encode(features: Tensor, tensors: Sequence[Tensor], heads: int) -> Tensor:
    """Features [G, D] to Z [G, D]; with a gradient, but no second one.

    Args:
        features: where ``has_encoder``.
        tensors: the twelve stacked tensors of the encoder, each [L, …].
        heads: attention heads, a divisor of D.
    """
    if torch.is_grad_enabled():
        encoded: Tensor = _Encoder.apply(heads, features, *tensors)  # type: ignore[no-untyped-call]
        return encoded
    return _Encoding(features, tensors, heads).encoded


class _Encoding:
    """A forward pass and the way back, with what lies between them.

    Args:
        features: as for ``encode``.
        tensors: likewise.
        heads: likewise.
    """

    def __init__(self, features: Tensor, tensors: Sequence[Tensor], heads: int) -> None:
        self.tensors = [t.contiguous() for t in tensors]
        groups, dim = features.shape
        self.shape = encoder_shape(groups, self.tensors, heads)
        self.kept = features.new_empty(self.shape.layers + 1, dim, groups)
        self.kept[0] = features.T
        self._call("encoder", addresses(self.tensors), _pointer(self.kept))

    @property
    def encoded(self) -> Tensor:
        """Z, [G, D]."""
        return self.kept[-1].T.contiguous()

    def backward(self, slope: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Gradients with respect to the features and to each of the tensors.

        Args:
            slope: the gradient with respect to Z, [G, D].
        """
        slope = slope.T.clone(memory_format=torch.contiguous_format)
        gradients = [torch.empty_like(t) for t in self.tensors]
        self._call(
            "encoder_backward",
            *(addresses(self.tensors), _pointer(self.kept), _pointer(slope), addresses(gradients)),
        )
        return slope.T, gradients

    def _call(self, name: str, *arguments: Any) -> None:
        if getattr(library(self.kept.dtype), name)(self.shape, *arguments):
            raise MemoryError(f"no memory for the {name} of the modulator")


class _Encoder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: int, features: Tensor, *tensors: Tensor) -> Tensor:
        ctx.encoding = _Encoding(features, tensors, heads)
        ctx.save_for_backward(*tensors)
        encoded: Tensor = ctx.encoding.encoded
        return encoded

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors  # complains about weights that have changed
        features, tensors = ctx.encoding.backward(slope)
        return (None, features, *tensors)


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
