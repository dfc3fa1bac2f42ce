"""``Layout.products`` in one pass over the memory of a CPU."""

from __future__ import annotations

import ctypes
import itertools
import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from metaadamw.kernels.cpu import in_memory, library, pointer_array
from metaadamw.update.directions import Directions

__all__ = ["tensor_products"]

_MOST_COLUMNS = 8


_PARTS = tuple(map(operator.attrgetter, ("exp_avg", "exp_avg_sq", "grad")))
"""Of a ``Quotient``, in the order of the kernel's arguments."""


_TOGETHER = ("gg", "gm", "mm", "pp", "vv", "gd", "dd", "pd", "gp")
"""The products that the kernel can take all at once, in its order."""

_LETTERS = {"grad": "g", "param": "p", "exp_avg": "m", "exp_avg_sq": "v", "direction": "d"}


class _NotPlain(Exception):
    """A tensor that is not simply memory of the right precision and size."""


def _pointer(tensor: Tensor | None, numel: int, dtype: torch.dtype) -> int:
    if tensor is None:
        return 0
    if tensor.dtype is not dtype or tensor.numel() != numel or not in_memory(tensor):
        raise _NotPlain
    return tensor.data_ptr()


def tensor_products(
    names: Sequence[str],
    columns: Sequence[Sequence[Tensor | None] | Callable[[int], Tensor | None]],
    numels: Sequence[int],
    pairs: Sequence[tuple[int, int]],
    dtype: torch.dtype,
) -> Tensor | None:
    """Inner products and counts, [P, pairs]; None where torch's operations have to do it.

    Args:
        names: of the columns.
        columns: P tensors each, None standing for zeros; one of them may be ``Directions``.
        numels: the number of entries of every tensor, length P.
        pairs: two columns by index; −1 as the second counts the zeros of the first.
        dtype: precision of all tensors.
    """
    if len(columns) > _MOST_COLUMNS or (kernels := library(dtype)) is None:
        return None
    made = [i for i, column in enumerate(columns) if callable(column)]
    direction, states, scales = -1, [[0], [0], [0]], [0.0]
    try:
        if made:
            direction, column = made[0], columns[made[0]]
            if len(made) > 1 or not isinstance(column, Directions) or not column.plain:
                return None
            quotients = [column.quotient(i) for i in range(len(numels))]
            states = [
                [_pointer(q and part(q), n, dtype) for q, n in zip(quotients, numels, strict=True)]
                for part in _PARTS
            ]
            nothing = (0.0, 0.0, 0.0, 0.0)
            scales = [
                x for q in quotients for x in ((q.multiply, q.add, *q.betas) if q else nothing)
            ]
        pointers = [
            0 if callable(column) else _pointer(column[i], numel, dtype)
            for i, numel in enumerate(numels)
            for column in columns
        ]
    except _NotPlain:
        return None
    count = len(pairs)
    wanted = _together(names, pairs)
    result = torch.empty(len(numels), count, dtype=torch.float64, device="cpu")
    failed = kernels.products(
        ctypes.c_int64(len(numels)),
        (ctypes.c_int64 * len(numels))(*numels),
        ctypes.c_int64(len(columns)),
        pointer_array(pointers),
        ctypes.c_int64(direction),
        *map(pointer_array, states),
        (ctypes.c_double * len(scales))(*scales),
        ctypes.c_int64(count),
        (ctypes.c_int64 * (2 * count))(*itertools.chain.from_iterable(pairs)),
        wanted and (ctypes.c_int64 * count)(*wanted),
        (ctypes.c_int64 * 3)(
            *(names.index(n) if n in names else -1 for n in ("grad", "param", "exp_avg"))
        ),
        ctypes.c_void_p(result.data_ptr()),
    )
    return None if failed else result.to(dtype)


def _together(names: Sequence[str], pairs: Sequence[tuple[int, int]]) -> list[int] | None:
    """The pairs by their positions in ``_TOGETHER``; None if one is not there."""
    letters = [_LETTERS.get(name, "") for name in names]
    found = [letters[x] + (letters[y] if y >= 0 else "") for x, y in pairs]
    return [_TOGETHER.index(pair) for pair in found] if set(found) <= set(_TOGETHER) else None
