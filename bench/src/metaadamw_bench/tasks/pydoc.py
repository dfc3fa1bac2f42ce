"""Characters of the Python language reference, and a small Transformer."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from metaadamw_bench.tasks.spec import (
    Metric,
    PreparedTask,
    Protocol,
    Size,
    Splits,
    Task,
    equal_epochs,
)

# Newline and printable ASCII; every other character becomes the last entry.
_ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
_UNKNOWN = len(_ALPHABET)
_CONTEXT = 64
# Whole stretches of text go to one split, so that validation windows have few neighbours in train.
_WINDOWS_PER_SEGMENT = 20
_META_VALIDATION_SHARE = 0.05
_VALIDATION_SHARE = 0.05
_EPOCHS = 1


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map ``[N, T, width]`` to ``[N, T, width]``, each position seeing only earlier ones."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(hidden).chunk(3, dim=-1)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output


class Layer(nn.Module):
    """Pre-norm Transformer layer, with dropout on the two residual branches only.

    Dropout on the attention weights would take half of a training step on a CPU.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, 2 * width)
        self.linear2 = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map ``[N, T, width]`` to ``[N, T, width]``."""
        hidden = hidden + self.dropout(self.attention(self.norm1(hidden)))
        expanded = functional.relu(self.linear1(self.norm2(hidden)))
        output: Tensor = hidden + self.dropout(self.linear2(expanded))
        return output


class CharacterTransformer(nn.Module):
    """Two causal Transformer layers over characters, with sinusoidal positions."""

    positions: Tensor

    def __init__(self, width: int = 64, heads: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(_ALPHABET) + 1, width)
        self.layers = nn.ModuleList(Layer(width, heads, dropout) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, len(_ALPHABET) + 1)
        angles = torch.arange(_CONTEXT).outer(100.0 ** -torch.linspace(0, 1, width // 2))
        positions = torch.cat([angles.sin(), angles.cos()], dim=1)
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, characters: Tensor) -> Tensor:
        """Map characters ``[N, T]`` to logits of the next ones, ``[N, T, alphabet]``."""
        hidden = self.embedding(characters) + self.positions[: characters.shape[1]]
        for layer in self.layers:
            hidden = layer(hidden)
        logits: Tensor = self.head(self.norm(hidden))
        return logits


@cache
def load() -> Splits:
    """Cut the text into segments, shared out 90 : 5 : 5 by one fixed permutation."""
    from pydoc_data.topics import topics

    # Topics quote each other, so every paragraph is kept once: none is in two splits.
    paragraphs = dict.fromkeys(
        paragraph.strip("\n") for text in topics.values() for paragraph in text.split("\n\n")
    )
    index = {character: position for position, character in enumerate(_ALPHABET)}
    text = "\n\n".join(paragraphs)
    codes = torch.tensor([index.get(character, _UNKNOWN) for character in text])

    segment = _WINDOWS_PER_SEGMENT * (_CONTEXT + 1)
    segments = codes[: len(codes) // segment * segment].view(-1, segment)
    order = torch.randperm(len(segments), generator=torch.Generator().manual_seed(0))
    meta_validation = round(_META_VALIDATION_SHARE * len(order))
    validation = round(_VALIDATION_SHARE * len(order))
    parts = order.split([len(order) - meta_validation - validation, meta_validation, validation])
    windows = [segments[part].view(-1, _CONTEXT + 1) for part in parts]
    return Splits(*(TensorDataset(window[:, :-1], window[:, 1:]) for window in windows))


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over all characters of the batch, in nats."""
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


METRIC = Metric(
    name="bits per character", direction="minimize", finish=lambda nats: nats / math.log(2)
)


def build(protocol: Protocol, size: Size, data_dir: Path | None) -> PreparedTask:
    """Everything a run needs; the data directory is not."""
    return PreparedTask(
        name="pydoc",
        protocol=protocol,
        size=size,
        splits=load(),
        build_model=CharacterTransformer,
        loss=cross_entropy,
        metric=METRIC,
        batch_size=16,
        drop_last=True,
        max_epochs=equal_epochs(_EPOCHS),
        patience=None,
        # The best for AdamW on the meta-validation part among 1e-3, 3e-3, 1e-2, 3e-2.
        lr=1e-2,
        weight_decay=1e-2,
    )


TASK = Task(
    name="pydoc",
    title="Python language reference, small character Transformer",
    data=(
        "CPython's pydoc_data.topics: about 370,000 characters of the language reference, "
        "paragraphs kept once, windows of 64 characters; segments of 1,300 characters shared out "
        "90 : 5 : 5 (the text differs slightly between Python versions)"
    ),
    metric=METRIC,
    build=build,
    max_epochs=lambda protocol, size: equal_epochs(_EPOCHS),
    protocols=("clean",),
    sizes=("small",),
)
