"""The recurrent network that tells positive from negative reviews."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Sentiment"]


class Sentiment(nn.Module):
    """Bidirectional LSTM whose last states, of both directions, are classified."""

    def __init__(
        self,
        vocabulary: int,
        pad: int = 0,
        embedding: int = 32,
        width: int = 64,
        layers: int = 2,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding, padding_idx=pad)
        self.lstm = nn.LSTM(
            embedding,
            width,
            layers,
            batch_first=True,
            dropout=dropout if layers > 1 else 0.0,
            bidirectional=True,
        )
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(2 * width, 2)

    def forward(self, words: Tensor) -> Tensor:
        """Map words ``[N, T]`` to logits ``[N, 2]``."""
        _, (states, _) = self.lstm(self.embedding(words))
        last = torch.cat([states[-2], states[-1]], dim=1)
        logits: Tensor = self.fc(self.dropout(last))
        return logits
