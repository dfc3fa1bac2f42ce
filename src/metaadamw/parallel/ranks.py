"""The processes that take one meta-update together, each with batches of its own.

Losses and gradients become means over the processes, as in training. DDP's own hooks rest
meanwhile: they belong to ``backward()`` of the training step. Gradients of ``fully_shard`` come out
of the model's own hooks.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from metaadamw.parallel.shards import Shards, is_distributed
from metaadamw.state.token import real_view

__all__ = ["NoLoss", "Ranks"]

T = TypeVar("T")
_FABRICS = ("lightning.fabric", "lightning_fabric")


class NoLoss(Exception):
    """The user's loss is None for a batch that it does not want: no error, nothing to learn."""


class Ranks:
    """Who takes part in a meta-update of ``model``; a single process is the trivial case.

    Args:
        model: with ``DistributedDataParallel`` or ``fully_shard`` anywhere inside, or plain.
        shards: how the optimizer's parameters are spread over processes, if they are.
    """

    def __init__(self, model: nn.Module, shards: Shards | None) -> None:
        self.model = model
        self.replicas = [m for m in model.modules() if isinstance(m, DistributedDataParallel)]
        fsdp = sys.modules.get("torch.distributed.fsdp")
        kind: Any = getattr(fsdp, "FSDPModule", ())
        self.sharded = [m for m in model.modules() if isinstance(m, kind)]
        self.distributed = shards is not None
        if self.replicas and self.distributed:
            raise ValueError(
                "model must be DistributedDataParallel or sharded (DTensor), got both; a 2-D mesh "
                "with fully_shard replicates shards"
            )
        # A model whose forward pass communicates: errors cannot be exchanged in the middle of that.
        self.communicates = self.distributed or any(
            isinstance(m, nn.SyncBatchNorm) for m in model.modules()
        )
        if self.replicas:
            self.groups: list[Any] = [self.replicas[0].process_group]
        else:
            self.groups = [] if shards is None else shards.groups()
        self.size = math.prod(dist.get_world_size(group) for group in self.groups)

    # What the processes tell each other ----------------------------------------------------------

    def gather(self, value: Any) -> dict[int, Any]:
        """A small value of every process, by rank, in the same order everywhere."""
        if not self.groups:
            return {0: value}
        values = {dist.get_rank(): value}
        for group in self.groups:
            received: list[Any] = [None] * dist.get_world_size(group)
            dist.all_gather_object(received, values, group=group)
            values = {rank: v for part in received for rank, v in part.items()}
        return dict(sorted(values.items()))

    def begin(
        self, check: Callable[[], None], own: dict[str, Any], batches: Mapping[str, Any]
    ) -> None:
        """Begin on all processes or on none.

        Args:
            check: raises if this process lacks something.
            own: what must be the same on every process.
            batches: of this process; of different sizes they are not weighted by their examples.

        Raises:
            ValueError: it differs; or what ``check`` raises, on every process.
        """
        if not self.groups and dist.is_initialized() and dist.get_world_size() > 1:
            warnings.warn(
                f"this is one of {dist.get_world_size()} processes, and update_attention got a "
                "model that is neither DistributedDataParallel nor sharded: the meta-update sees "
                "this process's batches only, and α, β will differ between the processes",
                stacklevel=4,
            )
        sizes = {name: _examples(batch) for name, batch in batches.items()}
        _, starts = self.attempt("the start", check, lambda _: (own, sizes))
        reports = {rank: values for rank, (values, _) in starts.items()}
        first, *others = reports.items()
        for rank, values in others:
            for key, value in values.items():
                if value != first[1][key]:
                    raise ValueError(
                        f"update_attention must be called alike on all processes, got {key}: "
                        f"{first[1][key]} on rank {first[0]}, {value} on rank {rank}"
                    )

        for name in batches:
            found = {rank: by_name.get(name) for rank, (_, by_name) in starts.items()}
            if len(set(found.values())) > 1:
                warnings.warn(
                    f"{name} has a different number of examples on each process "
                    f"({', '.join(f'{n} on rank {rank}' for rank, n in found.items())}): the mean "
                    "over processes weights them as if they were equal",
                    stacklevel=4,
                )

    def all(self, flag: bool) -> bool:
        """Whether it holds on every process."""
        return all(self.gather(flag).values())

    def attempt(
        self,
        what: str,
        function: Callable[[], T],
        summary: Callable[[T], Any],
        *,
        communicates: bool = False,
    ) -> tuple[T, dict[int, Any]]:
        """The result of ``function``, and the summary of it on every process.

        Args:
            what: named in the error.
            function: what every process does.
            summary: small, of the result.
            communicates: the others may wait inside ``function`` for one that raises. It raises at
                once then, as in training, and the launcher ends the others.

        Raises:
            RuntimeError: it raised on another process, which is named. Where it raised, that error.
            NoLoss: on every process, if it was raised on some and there was no other error.
        """
        error, result, report = None, None, None
        try:
            result = function()
            report = summary(result)
        except Exception as raised:
            if communicates or not self.groups:
                raise
            error = raised
        missing = str(error) if isinstance(error, NoLoss) else None
        told = None if error is None or missing else f"{type(error).__name__}: {error}"
        reports = self.gather((told, missing, report))
        if error is not None and not missing:
            raise error
        failed = [f"rank {rank}: {told}" for rank, (told, _, _) in reports.items() if told]
        if failed:
            raise RuntimeError(f"update_attention failed at {what} on {'; '.join(failed)}")
        self.agree({rank: missing for rank, (_, missing, _) in reports.items()})
        return cast(T, result), {rank: report for rank, (_, _, report) in reports.items()}

    def agree(self, missing: Mapping[int, str | None]) -> None:
        """Raise ``NoLoss`` on every process if one has no loss.

        Args:
            missing: why, by rank; None where there is a loss.
        """
        ranks = [rank for rank, why in missing.items() if why]
        if ranks:
            where = f" (rank {', '.join(map(str, ranks))})" if self.groups else ""
            raise NoLoss(f"{missing[ranks[0]]}{where}")

    def mean(self, params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Gradients as means over the processes; a gradient missing on some counts as zero there.

        Those of DTensors are means already.
        """
        if not self.groups:
            return list(grads)
        plain = [i for i, p in enumerate(params) if not is_distributed(p)]
        there = self.gather([grads[i] is not None for i in plain])
        result = list(grads)
        for i, anywhere in zip(plain, map(any, zip(*there.values(), strict=True)), strict=True):
            if not anywhere:
                continue
            own = grads[i]
            # A new tensor: autograd may hand out one for two parameters, or an expanded one.
            share = torch.zeros_like(params[i]) if own is None else own.detach() / self.size
            share = share.contiguous()
            for group in self.groups:
                dist.all_reduce(real_view(share), group=group)
            result[i] = share
        return result

    # The model's hooks ---------------------------------------------------------------------------

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The model outside of the training step: its hooks neither see nor change that.

        Raises:
            RuntimeError: micro-batches without synchronisation are pending in ``fully_shard``.
        """
        replicas = [
            (m, m.require_backward_grad_sync, m.require_forward_param_sync) for m in self.replicas
        ]
        groups = [group for module in self.sharded for group in _param_groups(module)]
        if any(_pending(group) for group in groups):
            raise RuntimeError(
                "update_attention needs gradients that are reduced: with set_requires_gradient_sync"
                "(False) call it after the last micro-batch"
            )
        flags = [(group, group.reduce_grads, group.all_reduce_grads) for group in groups]
        self.reshard()
        # Fabric's outputs raise in a backward pass that is not its own.
        wrappers = (sys.modules.get(f"{name}.wrappers") for name in _FABRICS)
        fabrics: list[Any] = [w for w in wrappers if hasattr(w, "_in_fabric_backward")]
        inside = [fabric._in_fabric_backward for fabric in fabrics]
        try:
            for fabric in fabrics:
                fabric._in_fabric_backward = True
            for replica, _, _ in replicas:
                replica.require_backward_grad_sync = replica.require_forward_param_sync = False
            for group, _, _ in flags:
                group.reduce_grads = group.all_reduce_grads = True
            yield
        except BaseException:
            self._abort()
            raise
        finally:
            for fabric, flag in zip(fabrics, inside, strict=True):
                fabric._in_fabric_backward = flag
            for replica, backward, forward in replicas:
                replica.require_backward_grad_sync = backward
                replica.require_forward_param_sync = forward
            for group, reduce, all_reduce in flags:
                group.reduce_grads, group.all_reduce_grads = reduce, all_reduce
            self.reshard()

    def _abort(self) -> None:
        """Let ``fully_shard`` forget a pass that an exception has ended."""
        inner: set[int] = set()
        for module in self.sharded:
            if id(module) not in inner and hasattr(module, "reset_iter_state"):
                module.reset_iter_state()
                inner |= {id(m) for m in module.modules()}

    def reshard(self) -> None:
        """Forget gathered parameters, which would hide changes of the shards."""
        for module in self.sharded:
            module.reshard()

    def backward(self, loss: Tensor, params: Sequence[Tensor]) -> list[Tensor | None]:
        """Gradients through ``.grad``, where hooks and checkpoints put them; that is None again."""
        loss.backward()
        self.reshard()
        grads = [p.grad for p in params]
        for param in (*self.model.parameters(), *params):
            param.grad = None
        return grads

    def compute_dtypes(self) -> list[torch.dtype]:
        """The precisions that mixed-precision policies compute in."""
        groups = [group for module in self.sharded for group in _param_groups(module)]
        return [d for group in groups if (d := group.mp_policy.param_dtype) is not None]


def _param_groups(module: Any) -> list[Any]:
    """The parameter groups of an ``FSDPModule``: one in older versions of torch, now several."""
    state = module._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is None:
        groups = [group] if (group := state._fsdp_param_group) else []
    return list(groups)


def _pending(group: Any) -> bool:
    """Whether a group of ``fully_shard`` holds gradients that wait for a later reduction."""
    return group._partial_reduce_output is not None or any(
        param.unsharded_accumulated_grad is not None
        or (hasattr(param, "_unsharded_param") and param._unsharded_param.grad is not None)
        for param in group.fsdp_params
    )


def _examples(batch: Any) -> int | None:
    """The length of the first tensor in a batch; None where there is none."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else None
    parts = batch.values() if isinstance(batch, Mapping) else batch
    if isinstance(batch, (Mapping, list, tuple)):
        return next((n for n in map(_examples, parts) if n is not None), None)
    return None
