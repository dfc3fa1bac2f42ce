"""What the graph behind a tensor tells before a gradient is taken through it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.graph import Node

__all__ = ["Functions", "functions_of", "hides_parameters", "leaves", "once_differentiable"]

# Functions of torch with a jump in their derivative, or in themselves.
_KINKED = re.compile(
    "Relu|Threshold|Hard|[sS]hrink|Max|Amax|Min|Amin|Aminmax|Abs|Sgn|Sign|Clamp|Where"
    "|Sort|Topk|Kthvalue|Median|Mode|L1|Margin|Hinge|Round|Floor|Ceil|Trunc"
)


def _nodes(tensors: Iterable[Tensor | None]) -> Iterator[Node]:
    """Every node behind the tensors, once."""
    pending = [t.grad_fn for t in tensors if t is not None and t.grad_fn is not None]
    seen = set(pending)
    while pending:
        node = pending.pop()
        yield node
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                pending.append(following)


def once_differentiable(gradients: Iterable[Tensor | None]) -> bool:
    """Whether a kernel behind ``gradients`` is marked as differentiable only once.

    Such a kernel (``torch.autograd.function.once_differentiable``) hangs an error node beside the
    graph that ``autograd.grad`` walks: the product would silently lack its part.
    """
    return any(node.name() == "torch::autograd::Error" for node in _nodes(gradients))


def hides_parameters(loss: Tensor) -> bool:
    """Whether a checkpoint with ``use_reentrant=True`` lies behind ``loss``.

    What it computes is not in the graph: ``autograd.grad`` raises or, worse, passes the parameters
    inside over in silence. Only ``backward()`` finds them.
    """
    return any(node.name() == "CheckpointFunctionBackward" for node in _nodes([loss]))


def leaves(loss: Tensor) -> list[Tensor]:
    """The tensors in sight whose ``.grad`` a ``backward()`` of ``loss`` writes."""
    return [
        cast(Any, node).variable
        for node in _nodes([loss])
        if node.name() == "torch::autograd::AccumulateGrad"
    ]


class Functions(NamedTuple):
    """The functions that a loss is made of.

    Attributes:
        own: names of those of torch, whose second derivatives torch knows.
        foreign: the others by name: Python classes, None for one in C++.
        unit: the rounding unit of the coarsest precision in the graph.
    """

    own: frozenset[str]
    foreign: dict[str, type | None]
    unit: float

    @property
    def kinked(self) -> bool:
        """Whether a function of torch has a kink or a jump."""
        return any(_KINKED.search(name) for name in self.own)


def functions_of(loss: Tensor) -> Functions:
    """The functions in the graph behind ``loss``."""
    own: set[str] = set()
    foreign: dict[str, type | None] = {}
    unit = 0.0
    for node in _nodes([loss]):
        kind = getattr(node, "_forward_cls", None)
        if kind is None and hasattr(torch._C._functions, type(node).__name__):
            own.add(node.name())
        elif kind is None:
            foreign[node.name()] = None
        else:
            foreign[f"{kind.__module__}.{kind.__qualname__}"] = kind
        for output in getattr(node, "_input_metadata", ()):
            if output.dtype.is_floating_point or output.dtype.is_complex:
                unit = max(unit, torch.finfo(output.dtype).eps)
    return Functions(frozenset(own), foreign, unit)
