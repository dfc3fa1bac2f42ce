"""Numbers from the device, all at once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["plain_numbers"]


def plain_numbers(values: Mapping[str, Tensor | int | float]) -> dict[str, int | float]:
    """The same with every 0-d tensor as a float or int, to the last bit.

    They travel as bytes: one read of the device for all precisions, where each read would wait.
    """
    result = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
    by_dtype: dict[torch.dtype, dict[str, Tensor]] = {}
    for name, value in values.items():
        if isinstance(value, Tensor):
            by_dtype.setdefault(value.dtype, {})[name] = value.detach()
    if by_dtype:
        parts = [torch.stack([*same.values()]).view(torch.uint8) for same in by_dtype.values()]
        pieces = torch.cat(parts).cpu().split([part.numel() for part in parts])
        for (dtype, same), piece in zip(by_dtype.items(), pieces, strict=True):
            # A copy begins where a number of any size may begin.
            result |= zip(same, piece.clone().view(dtype).tolist(), strict=True)
    return {name: result[name] for name in values}
