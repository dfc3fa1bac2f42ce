r"""Beyond the paper: the free hypergradient with a longer horizon.

One step is mostly noise, and so is what the next gradient says of it. Over K steps the noise
averages out while progress adds up. The displacement of a window,

.. math:: D_{t,g} = \theta_{t,g} - \theta_{t-K,g},

meets the mean gradient at the end of the next one, which AdamW keeps anyway as the first moment:

.. math:: \partial L/\partial\log\alpha_g \approx \cos(m_{t+K,g}, D_{t,g})

is negative as long as going on where the window went would lower the loss. It costs three inner
products every K steps and two copies of the parameters. K has to be well above
:math:`1/(1-\beta_1)`, the memory of m: what m still knows of the window itself always says go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from metaadamw.layout import Column, Layout, Pair, cosines
from metaadamw.tokens import Token

__all__ = [
    "WINDOW_KEYS",
    "WINDOW_PRODUCTS",
    "begin_window",
    "create_window",
    "displacements",
    "window_signal",
]

START, DISPLACEMENT = "window_start", "displacement"
WINDOW_KEYS = (START, DISPLACEMENT)
"""Two tensors in the state of a parameter: where the window began, how far the last one went."""

WINDOW_PRODUCTS: list[Pair] = [
    ("exp_avg", "displacement"),
    ("exp_avg", "exp_avg"),
    ("displacement", "displacement"),
]
"""The inner products that the signal is made of."""


def create_window(entry: dict[str, Any], param: Tensor) -> None:
    """The state of a parameter that a window begins with; one that has it keeps it."""
    if START not in entry:
        entry[START] = param.detach().clone(memory_format=torch.preserve_format)
        entry[DISPLACEMENT] = torch.zeros_like(param)


def displacements(tokens: Sequence[Token]) -> Column:
    """The displacement of every tensor, None where there is none."""
    return [d for token in tokens for d in token.displacements]


@torch.no_grad()
def window_signal(products: Mapping[Pair, Tensor], layout: Layout) -> Tensor:
    r""":math:`\cos(m_{t+K,g}, D_{t,g})` of the groups' concatenated tensors, [G].

    0 where nothing moved or no gradient came.
    """
    product, exp_avg_square, displacement_square = (
        products[pair] @ layout.sum for pair in WINDOW_PRODUCTS
    )
    return cosines(product, exp_avg_square.sqrt(), displacement_square.sqrt())


@torch.no_grad()
def begin_window(tokens: Sequence[Token]) -> None:
    """End a window, before the step that begins the next: note its displacement and its end."""
    for token in tokens:
        for param, start, displacement in zip(
            token.params, token.window_starts, token.displacements, strict=True
        ):
            if start is not None and displacement is not None:
                torch.sub(param, start, out=displacement)
                start.copy_(param)
