"""Losses and gradients of the user's model during a meta-update, checked where they enter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.nn.attention import SDPBackend, sdpa_kernel

from metaadamw.learning.lookahead.graphs import Functions, functions_of, hides_parameters, leaves
from metaadamw.learning.lookahead.hooks import RestingHooks
from metaadamw.learning.lookahead.switches import Switch
from metaadamw.learning.lookahead.undisturbed import RandomStreams, devices_of
from metaadamw.parallel.ranks import NoLoss, Ranks
from metaadamw.parallel.shards import is_distributed, local_gradient
from metaadamw.state.precision import full_precision

__all__ = ["Evaluation", "LossFunction", "NoSecondDerivative", "twice_differentiable"]

LossFunction = Callable[[nn.Module, Any], Tensor | None]


class NoSecondDerivative(RuntimeError):
    """The model has a kernel without second derivative or a wrong one, is compiled or checkpointed.

    Args:
        why: what stands in the way.
    """

    def __init__(self, why: object) -> None:
        self.why = str(why)
        super().__init__(
            f"hvp='exact' needs a second derivative that this model does not have ({why}); "
            "hvp='finite_difference' needs none"
        )


@contextmanager
def _with_second_derivatives() -> Iterator[None]:
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


twice_differentiable = Switch(_with_second_derivatives)
"""Kernels with a second derivative only: the fused attention and recurrent ones have none.

Torch chooses them for the whole process, so other threads get them as well meanwhile.
"""


class Evaluation:
    """``loss_fn`` on the model as its parameters stand, with a random stream for each batch.

    Two evaluations of one batch see the same random numbers (dropout masks), so their difference is
    the parameters' doing; different batches see different ones.

    Args:
        model: the model.
        loss_fn: ``loss_fn(model, batch)`` -> scalar, or None for a batch that it does not want.
        params: the parameters to differentiate with respect to.
        maximize: the loss is an objective to maximise; its sign is turned.
        ranks: the processes that evaluate together; losses and gradients are means over them.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        params: Sequence[Tensor],
        maximize: bool,
        ranks: Ranks,
    ) -> None:
        self.model, self.loss_fn, self.params, self.ranks = model, loss_fn, list(params), ranks
        self.sign = -1.0 if maximize else 1.0
        self.devices = devices_of(model, params)
        self.streams: dict[str, RandomStreams] = {}
        self.unused = RandomStreams(self.devices)
        self.suspects: list[int] = []
        self.functions = Functions(frozenset(), {}, 0.0)

    def _loss(self, name: str, batch: Any) -> Tensor:
        new = name not in self.streams
        if new:
            self.streams[name] = self.unused
        self.streams[name].restore()
        torch.clear_autocast_cache()  # of weights in half precision, which have moved since
        loss = self.loss_fn(self.model, batch)
        if isinstance(loss, Tensor) and is_distributed(loss):
            loss = cast(Any, loss).full_tensor()
        if new:
            self.unused = RandomStreams(self.devices)  # where the next new batch starts
        missing = f"no loss on {name}: loss_fn returned None" if loss is None else None
        if self.ranks.communicates:  # the others must not begin a backward pass alone
            self.ranks.agree(self.ranks.gather(missing))
        if missing:
            raise NoLoss(missing)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.is_complex():
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"loss_fn must return a real scalar tensor, got {got} for {name}")
        return self.sign * loss.reshape(())

    def loss(self, name: str, batch: Any) -> Tensor:
        """The loss alone, a scalar without graph.

        Computed with one, like the loss at θ′ that it is compared to: a loss may differentiate
        inside (a gradient penalty), and a model may compute otherwise where nobody asks for
        gradients.
        """
        with torch.enable_grad():
            loss, losses = self.ranks.attempt(
                name,
                lambda: self._loss(name, batch).detach(),
                Tensor.item,
                communicates=self.ranks.communicates,
            )
        self.ranks.reshard()
        return self._mean_loss(loss, losses)

    def _mean_loss(self, loss: Tensor, losses: Mapping[int, float]) -> Tensor:
        """The mean over all processes; notes where it is not finite."""
        self.suspects = [rank for rank, value in losses.items() if not math.isfinite(value)]
        if len(losses) == 1:
            return loss.detach()
        return torch.full_like(loss, math.fsum(losses.values()) / len(losses)).detach()

    def gradient(
        self, name: str, batch: Any, *, create_graph: bool = False
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The loss and its gradient, None for a parameter that it does not depend on.

        Of sharded parameters the gradient is that of the local shard. With ``create_graph`` it is
        not yet the mean over the processes.

        Raises:
            ValueError: the loss is not a scalar, has no graph, or depends on none of the
                optimizer's parameters.
            NoSecondDerivative: with ``create_graph``, differentiating failed, here or on another
                process; what the loss itself raises comes through.
        """
        (loss, grads, failure), reports = self.ranks.attempt(
            name,
            lambda: self._gradient(name, batch, create_graph=create_graph),
            lambda result: (result[0].item(), _told(result[2])),
            communicates=self.ranks.communicates,
        )
        _raise_failure(failure, (told for _, told in reports.values()))
        if not create_graph:
            grads = self.ranks.mean(self.params, grads)
        return self._mean_loss(loss, {rank: value for rank, (value, _) in reports.items()}), grads

    def _gradient(
        self, name: str, batch: Any, *, create_graph: bool
    ) -> tuple[Tensor, list[Tensor | None], Exception | None]:
        with torch.enable_grad():
            try:
                loss = self._loss(name, batch)
            except torch.OutOfMemoryError as raised:  # kernels that can be differentiated twice
                if not create_graph:
                    raise
                return torch.zeros(()), [], raised
            if not loss.requires_grad:
                raise ValueError(
                    f"loss_fn must return a loss with a graph, got a detached one for {name}; "
                    "do not use .detach(), .item() or torch.no_grad() in it"
                )
            if create_graph:
                self.functions = functions_of(loss)
            with full_precision(loss.device):  # as for any backward pass
                try:
                    grads = self._differentiate(loss, create_graph=create_graph)
                except Exception as raised:
                    if not create_graph:
                        raise
                    return loss.detach(), [], raised
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
        own = [
            None if g is None else local_gradient(g, p)
            for g, p in zip(grads, self.params, strict=True)
        ]
        return loss.detach(), own, None

    def _differentiate(self, loss: Tensor, *, create_graph: bool) -> list[Tensor | None]:
        if self.ranks.sharded:
            return self.ranks.backward(loss, self.params)
        if hides_parameters(loss):
            if create_graph:
                raise NoSecondDerivative("activation checkpoints have one with use_reentrant=False")
            return self._backward(loss)
        # A frozen parameter is one without a gradient.
        trained = [p for p in self.params if p.requires_grad]
        found = iter(
            torch.autograd.grad(loss, trained, create_graph=create_graph, allow_unused=True)
            if trained
            else ()
        )
        return [next(found) if p.requires_grad else None for p in self.params]

    def _backward(self, loss: Tensor) -> list[Tensor | None]:
        """Gradients through ``.grad``, which is put back, also that of a batch."""
        kept = [(leaf, leaf.grad) for leaf in leaves(loss)]
        hooks = RestingHooks()
        try:
            for leaf, _ in kept:
                leaf.grad = None
                hooks.rest(leaf)
            return self.ranks.backward(loss, self.params)
        finally:
            hooks.restore()
            for leaf, grad in kept:
                leaf.grad = grad

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
        turned = [
            None if g is None else local_gradient(g if self.sign > 0 else -g, p)
            for g, p in zip(grads, self.params, strict=True)
        ]
        value = self.sign * torch.as_tensor(loss, device=self.devices[0]).detach().reshape(())
        losses = self.ranks.gather(value.item())
        # DDP has averaged these, unless the last micro-batch came under no_sync().
        return self._mean_loss(value, losses), self.ranks.mean(self.params, turned)

    def product(
        self, gradients: Sequence[GradientEdge], vectors: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """The Hessian times ``vectors``, through the graphs of ``gradients``: the mean.

        Raises:
            NoSecondDerivative: differentiating failed, here or on another process.
        """
        trained = [p for p in self.params if p.requires_grad]

        def differentiate() -> tuple[tuple[Tensor | None, ...], Exception | None]:
            try:
                with full_precision(vectors[0].device):
                    return torch.autograd.grad(
                        gradients, trained, grad_outputs=vectors, allow_unused=True
                    ), None
            except Exception as raised:
                return (), raised

        (products, failure), reports = self.ranks.attempt(
            "the second derivative", differentiate, lambda result: _told(result[1])
        )
        _raise_failure(failure, reports.values())
        found = iter(products)
        aligned = [next(found) if p.requires_grad else None for p in self.params]
        return self.ranks.mean(self.params, aligned)


def _told(failure: Exception | None) -> str | None:
    return None if failure is None else f"{type(failure).__name__}: {failure}"


def _raise_failure(failure: Exception | None, told: Iterable[str | None]) -> None:
    """Raise on every process what has failed on one."""
    if isinstance(failure, NoSecondDerivative):
        raise failure
    for text in told:
        if text is not None:
            raise NoSecondDerivative(text) from failure
