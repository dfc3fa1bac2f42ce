"""The Transformer that translates Multi30k from German to English."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from metaadamw_bench.models.positions import Positions

__all__ = ["Translator"]


class Translator(nn.Module):
    """Post-norm encoder and decoder.

    Args:
        source: number of source words.
        target: number of target words; None: one embedding serves both sides.
        pad: this word is hidden from attention; None: no padding masks, as the authors ran it.
        length: longest sentence.
        width: size of the hidden vectors.
        heads: heads of each attention.
        layers: layers of the encoder, and of the decoder.
        dropout: share of dropped activations.
    """

    def __init__(
        self,
        source: int,
        target: int | None = None,
        pad: int | None = None,
        length: int = 64,
        width: int = 256,
        heads: int = 8,
        layers: int = 4,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.pad = pad
        self.scale = math.sqrt(width)
        self.source_embedding = nn.Embedding(source, width)
        self.target_embedding = (
            self.source_embedding if target is None else nn.Embedding(target, width)
        )
        self.positions = Positions(length, width)
        self.dropout = nn.Dropout(dropout)
        self.transformer = nn.Transformer(
            width, heads, layers, layers, 4 * width, dropout, batch_first=True
        )
        # Nested tensors drop columns that are padding in every row, which the masks still have.
        self.transformer.encoder.use_nested_tensor = False
        self.output = nn.Linear(width, source if target is None else target)

    def _embed(self, embedding: nn.Module, words: Tensor) -> Tensor:
        embedded: Tensor = self.dropout(self.positions(embedding(words) * self.scale))
        return embedded

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Map source ``[N, S]`` and the target so far ``[N, T]`` to logits of its next words."""
        length = target.shape[1]
        future = torch.ones(length, length, dtype=torch.bool, device=target.device).triu(1)
        hidden_source = None if self.pad is None else source == self.pad
        hidden = self.transformer(
            self._embed(self.source_embedding, source),
            self._embed(self.target_embedding, target),
            tgt_mask=future,
            tgt_is_causal=True,
            src_key_padding_mask=hidden_source,
            memory_key_padding_mask=hidden_source,
            tgt_key_padding_mask=None if self.pad is None else target == self.pad,
        )
        logits: Tensor = self.output(hidden)
        return logits
