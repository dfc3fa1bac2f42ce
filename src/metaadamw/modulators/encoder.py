"""Sec. 3.4, Eq. 5: one layer of the Transformer encoder over the groups."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ENCODER_TENSORS", "encoder_layer"]

ENCODER_TENSORS = (
    "in_proj_weight",
    "in_proj_bias",
    "out_proj_weight",
    "out_proj_bias",
    "norm1_weight",
    "norm1_bias",
    "norm2_weight",
    "norm2_bias",
    "linear1_weight",
    "linear1_bias",
    "linear2_weight",
    "linear2_bias",
)
"""The parameters of the encoder, in the order of ``encoder_layer``."""


def encoder_layer(x: Tensor, weights: Sequence[Tensor], heads: int) -> Tensor:
    """A pre-norm Transformer encoder layer, [G, D] to [G, D], as plain tensor operations.

    The same numbers as ``nn.TransformerEncoderLayer(norm_first=True, dropout=0)``.

    Args:
        x: one token for each group.
        weights: the twelve tensors of the layer, in the order of ``ENCODER_TENSORS``.
        heads: attention heads, a divisor of D.
    """
    in_weight, in_bias, out_weight, out_bias, *norms, weight1, bias1, weight2, bias2 = weights
    groups, dim = x.shape
    y = F.layer_norm(x, (dim,), norms[0], norms[1])
    qkv = F.linear(y, in_weight, in_bias).view(groups, 3, heads, dim // heads)
    query, key, value = qkv.permute(1, 2, 0, 3)  # each [heads, G, D / heads]
    scores = (query * (dim // heads) ** -0.5) @ key.transpose(1, 2)
    mixed = (torch.softmax(scores, dim=-1) @ value).transpose(0, 1).reshape(groups, dim)
    x = x + F.linear(mixed, out_weight, out_bias)
    y = F.layer_norm(x, (dim,), norms[2], norms[3])
    return x + F.linear(F.relu(F.linear(y, weight1, bias1)), weight2, bias2)
