"""Parts of a data set that share nothing."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from metaadamw_bench.tasks.spec import Splits

__all__ = ["without_copies"]


def without_copies(splits: Splits) -> Splits:
    """Keep an example that occurs in several parts, or several times in one, only once.

    The later part keeps it: test before validation before meta-validation before train. Examples
    are the same if their first tensors are.
    """
    seen: set[bytes] = set()
    parts: list[TensorDataset | None] = []
    for part in reversed(splits):
        parts.append(None if part is None else _unseen(part, seen))
    return Splits(*reversed(parts))  # type: ignore[arg-type]


def _unseen(part: TensorDataset, seen: set[bytes]) -> TensorDataset:
    first: Tensor = part.tensors[0]
    kept = []
    for index, row in enumerate(first.flatten(1).numpy()):
        content = row.tobytes()
        if content not in seen:
            seen.add(content)
            kept.append(index)
    if len(kept) == len(first):
        return part
    chosen = torch.tensor(kept)
    return type(part)(*(tensor[chosen] for tensor in part.tensors))
