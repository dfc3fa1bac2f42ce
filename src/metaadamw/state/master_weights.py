r"""Float32 master weights of bfloat16 parameters, at two more bytes a parameter.

A bfloat16 number is the upper half of a float32 number. Beside the rounded parameter its state
keeps the lower half, so that the two together are the float32 value, to the last bit: no update is
too small, and nothing is random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["LOW_BITS", "float32_values", "join", "keeps_low_bits", "split", "write_back"]

LOW_BITS = "low_bits"
"""The lower half's key in the state of a parameter."""


def keeps_low_bits(group: Mapping[str, Any], param: Tensor) -> bool:
    """Whether a parameter of ``group`` has a lower half; wider ones need none."""
    return bool(group["master_weights"]) and param.dtype == torch.bfloat16


def split(master: Tensor) -> tuple[Tensor, Tensor]:
    """A float32 tensor as the nearest bfloat16 and what is missing, in units of the last bit.

    Ties are rounded away from zero: the other half would not fit into 16 bits.

    Returns:
        The rounded tensor, bfloat16, and the lower half, int16.

    Example:
        >>> rounded, low_bits = split(torch.tensor([1.0001]))
        >>> rounded, low_bits
        (tensor([1.], dtype=torch.bfloat16), tensor([839], dtype=torch.int16))
        >>> join(rounded, low_bits)
        tensor([1.0001])
    """
    bits = master.view(torch.int32)
    upper = (bits + 0x8000) >> 16
    low_bits = (bits - (upper << 16)).to(torch.int16)
    rounded = upper.to(torch.int16).view(torch.bfloat16)
    # A NaN with all bits set would have been carried over to zero.
    return torch.where(master.isnan(), master.to(torch.bfloat16), rounded), low_bits


def join(rounded: Tensor, low_bits: Tensor) -> Tensor:
    """The float32 tensor that ``split`` took apart.

    A parameter may have been written to in between; then the lower half moves it by no more than
    half a unit in its last place. At zero there is nothing below: it stays.
    """
    upper = rounded.view(torch.int16).to(torch.int32) << 16
    lower = low_bits.to(torch.int32).masked_fill((rounded == 0) & (low_bits < 0), 0)
    return (upper + lower).view(torch.float32)


def float32_values(params: Sequence[Tensor], low_bits: Sequence[Tensor | None]) -> list[Tensor]:
    """Half-precision parameters in float32, master weights where they have some."""
    return [
        p.float() if low is None else join(p, low) for p, low in zip(params, low_bits, strict=True)
    ]


def write_back(
    params: Sequence[Tensor], low_bits: Sequence[Tensor | None], values: Sequence[Tensor]
) -> None:
    """Round float32 ``values`` into ``params``, and what rounding loses into ``low_bits``."""
    rounded = list(values)
    for i, (low, value) in enumerate(zip(low_bits, values, strict=True)):
        if low is not None:
            rounded[i], lower = split(value)
            low.copy_(lower)
    torch._foreach_copy_(list(params), rounded)
