"""The small GPT that models WikiText-2."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["LanguageModel"]


class LanguageModel(nn.Module):
    """Causal Transformer with learned positions and a head of its own (no tied weights)."""

    def __init__(
        self,
        vocabulary: int,
        length: int = 128,
        width: int = 128,
        heads: int = 4,
        layers: int = 2,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.position_embedding = nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.final_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, words: Tensor) -> Tensor:
        """Map words ``[N, T]`` to logits of the next words, ``[N, T, vocabulary]``."""
        length = words.shape[1]
        hidden = self.token_embedding(words) + self.position_embedding.weight[:length]
        future = torch.ones(length, length, dtype=torch.bool, device=words.device).triu(1)
        hidden = self.transformer(hidden, mask=future, is_causal=True)
        logits: Tensor = self.head(self.final_norm(hidden))
        return logits
