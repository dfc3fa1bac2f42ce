"""Losses and gradients of the user's model during a meta-update, checked where they enter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from metaadamw.precision import full_precision
from metaadamw.undisturbed import RandomStreams

__all__ = ["Evaluation", "LossFunction", "once_differentiable", "twice_differentiable"]

LossFunction = Callable[[nn.Module, Any], Tensor]


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Kernels with a second derivative only: the fused attention and recurrent ones have none."""
    cudnn = torch.backends.cudnn
    enabled = cudnn.enabled
    with sdpa_kernel(SDPBackend.MATH):
        try:
            if enabled:
                cudnn.enabled = False  # cudnn.flags() would also reset the user's other choices
            yield
        finally:
            if enabled:
                cudnn.enabled = True


def once_differentiable(gradients: Iterable[Tensor | None]) -> bool:
    """Whether a kernel behind ``gradients`` is marked as differentiable only once.

    Such a kernel (``torch.autograd.function.once_differentiable``) hangs an error node beside the
    graph that ``autograd.grad`` walks: the product would silently lack its part.
    """
    pending = [g.grad_fn for g in gradients if g is not None and g.grad_fn is not None]
    seen = set(pending)
    while pending:
        node = pending.pop()
        if node.name() == "torch::autograd::Error":
            return True
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                pending.append(following)
    return False


class Evaluation:
    """``loss_fn`` on the model as its parameters stand, with a random stream for each batch.

    Two evaluations of one batch see the same random numbers (dropout masks), so their difference is
    the parameters' doing; different batches see different ones.

    Args:
        model: the model.
        loss_fn: ``loss_fn(model, batch)`` -> scalar.
        params: the parameters to differentiate with respect to.
        maximize: the loss is an objective to maximise; its sign is turned.
    """

    def __init__(
        self, model: nn.Module, loss_fn: LossFunction, params: Sequence[Tensor], maximize: bool
    ) -> None:
        self.model, self.loss_fn, self.params = model, loss_fn, list(params)
        self.sign = -1.0 if maximize else 1.0
        self.devices = [p.device for p in params]
        self.streams: dict[str, RandomStreams] = {}
        self.unused = RandomStreams(self.devices)

    def _loss(self, name: str, batch: Any) -> Tensor:
        new = name not in self.streams
        if new:
            self.streams[name] = self.unused
        self.streams[name].restore()
        loss = self.loss_fn(self.model, batch)
        if new:
            self.unused = RandomStreams(self.devices)  # where the next new batch starts
        if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.is_complex():
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"loss_fn must return a real scalar tensor, got {got} for {name}")
        return self.sign * loss.reshape(())

    def loss(self, name: str, batch: Any) -> Tensor:
        """The loss alone, a scalar without graph."""
        with torch.no_grad():
            return self._loss(name, batch).detach()

    def gradient(
        self, name: str, batch: Any, *, create_graph: bool = False
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The loss and its gradient, None for a parameter that it does not depend on.

        Raises:
            ValueError: the loss is not a scalar, has no graph, or depends on none of the
                optimizer's parameters.
        """
        with torch.enable_grad():
            loss = self._loss(name, batch)
            if not loss.requires_grad:
                raise ValueError(
                    f"loss_fn must return a loss with a graph, got a detached one for {name}; "
                    "do not use .detach(), .item() or torch.no_grad() in it"
                )
            # A frozen parameter is one without a gradient.
            trained = [p for p in self.params if p.requires_grad]
            with full_precision(loss.device):  # as for any backward pass
                found = iter(
                    torch.autograd.grad(loss, trained, create_graph=create_graph, allow_unused=True)
                    if trained
                    else ()
                )
        grads = [next(found) if p.requires_grad else None for p in self.params]
        if any(g is not None and g.layout != torch.strided for g in grads):
            raise ValueError(
                f"gradients must be dense, got a sparse one for {name}; construct nn.Embedding "
                "with sparse=False"
            )
        if all(g is None for g in grads):
            raise ValueError(
                f"loss_fn must depend on the optimizer's parameters, got a loss for {name} that "
                "depends on none of them; is model the one whose parameters the optimizer has?"
            )
        return loss.detach(), grads

    def known(
        self, loss: Tensor | float, grads: Sequence[Tensor | None]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Loss and gradient that the training step has computed already, in our sign.

        Raises:
            ValueError: there is no gradient.
        """
        if all(g is None for g in grads):
            raise ValueError(
                "training_loss needs the gradients of that loss in .grad: call update_attention "
                "between backward() and zero_grad()"
            )
        turned = [None if g is None or self.sign > 0 else -g for g in grads]
        value = torch.as_tensor(loss, device=self.devices[0]).detach().reshape(())
        return self.sign * value, list(grads) if self.sign > 0 else turned

    def product(
        self, gradients: Sequence[Tensor], vectors: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """The Hessian, of which ``gradients`` keep the graph, times ``vectors``."""
        trained = [p for p in self.params if p.requires_grad]
        with full_precision(gradients[0].device):
            found = iter(
                torch.autograd.grad(gradients, trained, grad_outputs=vectors, allow_unused=True)
            )
        return [next(found) if p.requires_grad else None for p in self.params]
