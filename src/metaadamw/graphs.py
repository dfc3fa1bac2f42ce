"""What the graph behind a tensor tells before a gradient is taken through it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

from torch import Tensor
from torch.autograd.graph import Node

__all__ = ["hides_parameters", "leaves", "once_differentiable"]


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
