"""Meta-updates of several processes: the same as one, without trace, and faults on one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from metaadamw.parallel.ranks import Ranks
from tests.distributed.cases import (
    Case,
    Collectives,
    Net,
    assert_like_one_process,
    backward,
    batch_of,
    build,
    data_shard,
    loss_fn,
    train,
)
from tests.distributed.processes import Processes, Raised, device

LOOKAHEAD = Case(mode="lookahead")


@pytest.mark.parametrize("wrap", ["ddp", "fsdp"])
def test_lookahead(wrap: str, processes: Callable[[int], Processes]) -> None:
    single = train(LOOKAHEAD)
    assert (single["modulation"][0] - single["modulation"][-1]).abs().max() > 0.1
    for size in (1, 2, 4):
        ranks = processes(size).run(train, replace(LOOKAHEAD, wrap=wrap))
        assert_like_one_process(ranks, single)


@pytest.mark.parametrize(
    ("wrap", "options"),
    [
        ("ddp", {"meta": {"hvp": "exact"}}),
        ("ddp", {"reuse": True}),
        ("fsdp", {"reuse": True}),
        ("ddp", {"accumulate": 2}),
        ("fsdp", {"accumulate": 2}),
        ("ddp", {"frozen": True}),
        ("fsdp", {"frozen": True}),
        ("ddp", {"unused": True}),
        ("fsdp", {"unused": True}),
        ("ddp", {"optimizer": {"maximize": True}, "reuse": True}),
        ("fsdp_kept", {}),
        ("ddp", {"meta": {"objective": "generalization_gap", "gap_at": "theta_prime"}}),
        ("fsdp", {"meta": {"objective": "generalization_gap", "gap_at": "theta_prime"}}),
    ],
)
def test_options(wrap: str, options: dict[str, Any], processes: Callable[[int], Processes]) -> None:
    case = replace(LOOKAHEAD, steps=7, **options)
    case.meta.setdefault("hvp", "finite_difference")
    ranks = processes(2).run(train, replace(case, wrap=wrap))
    assert_like_one_process(ranks, train(case))


def mixed_precision(case: Case) -> Tensor:
    model, optimizer = build(case)
    for step in range(8):
        backward(model, case, step)
        if optimizer.meta_update_due:
            batches = [batch_of(1000 + i, shard=data_shard(case)) for i in range(3)]
            update = optimizer.update_attention(model, loss_fn, *batches)
            assert update.applied
            assert update.hvp == "finite_difference"
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.isfinite(p.to_local()).all() for p in model.parameters())
    return optimizer.modulation.alpha


def test_mixed_precision_policy(processes: Callable[[int], Processes]) -> None:
    case = Case("fsdp_bfloat16", "lookahead", meta={"hvp": "auto"}, dtype=torch.float32)
    first, second = processes(2).run(mixed_precision, case)
    assert torch.equal(first, second)
    assert not torch.equal(first, torch.ones_like(first))


# No trace ----------------------------------------------------------------------------------------


def trace(case: Case, calls: int) -> dict[str, Tensor]:
    """All that training leaves behind, with ``calls`` meta-updates that learn nothing each time."""
    model, optimizer = build(replace(case, meta={"lr": 0.0, "every": 1, **case.meta}))
    ddp = isinstance(model, DistributedDataParallel)
    inner = (model.module if ddp else model).layers[1].norm
    shard = data_shard(case)
    seen: dict[str, Tensor] = {}

    def fail(*_: Any) -> None:
        raise ArithmeticError

    def raising_inside(model: nn.Module, batch: Any) -> Tensor:
        handle = inner.register_forward_pre_hook(fail)
        try:
            return loss_fn(model, batch)
        finally:
            handle.remove()

    def raising_after(model: nn.Module, batch: Any) -> Tensor:
        fail(loss_fn(model, batch))

    def updates() -> None:
        for call in range(calls):
            batches = [batch_of(1000 + call + i, shard=shard) for i in range(3)]
            optimizer.update_attention(model, loss_fn, *batches)
            for loss in (raising_after, raising_inside):
                with pytest.raises(ArithmeticError):
                    optimizer.update_attention(model, loss, *batches)

    for step in range(4):
        if ddp:
            with model.no_sync():
                loss_fn(model, batch_of(step, shard=shard)).backward()
                updates()
        else:
            model.set_requires_gradient_sync(False)
            updates()
            loss_fn(model, batch_of(step, shard=shard)).backward()
            assert all(p.grad is None for p in model.parameters())
            model.set_requires_gradient_sync(True)
        loss_fn(model, batch_of(100 + step, shard=shard)).backward()
        updates()
        seen |= {f"{step}.{n}": local(p.grad).clone() for n, p in model.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
    seen |= {n: local(p).detach().clone() for n, p in model.named_parameters()}
    seen |= {n: b.clone() for n, b in model.named_buffers()}
    seen["random"] = torch.get_rng_state()
    return seen


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


@pytest.mark.parametrize("wrap", ["ddp", "fsdp"])
def test_no_trace(wrap: str, processes: Callable[[int], Processes]) -> None:
    """Also with pending gradients, batch norm, and when the loss raises after the forward pass."""
    case = replace(LOOKAHEAD, wrap=wrap, batch_norm=True)
    group = processes(2)
    for with_updates, without in zip(
        group.run(trace, case, 2), group.run(trace, case, 0), strict=True
    ):
        assert with_updates.keys() == without.keys()
        for name, value in without.items():
            assert torch.equal(with_updates[name], value), name


# Faults on one process ---------------------------------------------------------------------------


def update_with(case: Case, fault: str) -> tuple[str | None, Tensor]:
    """One meta-update after a training step, in which rank 1 differs; then a training step."""
    model, optimizer = build(case)
    odd = dist.get_rank() == 1
    shard = data_shard(case)
    if fault == "seed" and odd:
        with torch.no_grad():
            next(optimizer.modulator.parameters()).add_(1)
    backward(model, case, 0)
    optimizer.step()
    batches: list[Any] = [batch_of(1000 + i, shard=shard) for i in range(3)]
    if fault == "none" and odd:
        batches[1] = None
    if fault == "empty" and odd:
        batches[2] = tuple(t[:0] for t in batches[2])

    def loss(model: nn.Module, batch: Any) -> Tensor | None:
        if odd and fault == "raise" and torch.equal(batch[0], batches[1][0]):
            raise KeyError("a fault of one rank")
        value = loss_fn(model, batch)
        if odd and fault == "nan" and torch.equal(batch[0], batches[0][0]):
            value = value * torch.nan
        if odd and any(
            fault == f"no loss {i}" and torch.equal(batch[0], batches[i][0]) for i in range(3)
        ):
            return None
        return value

    try:
        reason = optimizer.update_attention(model, loss, *batches).skipped_reason
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    if fault == "seed":
        return reason, torch.zeros(1)
    optimizer.zero_grad()
    backward(model, case, 1)
    optimizer.step()
    return reason, torch.cat([local(p).detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    ("wrap", "fault", "on_rank_1", "elsewhere"),
    [
        ("ddp", "none", "ValueError: objective='combined' needs", "rank 1: ValueError: objective"),
        ("fsdp", "none", "ValueError: objective='combined' needs", "rank 1: ValueError: objective"),
        ("ddp", "raise", "KeyError: 'a fault of one rank'", "batch2 on rank 1: KeyError: 'a fault"),
        ("ddp", "nan", "non-finite loss or gradient on batch1 (rank 1)", None),
        ("fsdp", "nan", "non-finite loss or gradient on batch1 (rank 1)", None),
        ("ddp", "empty", "non-finite loss on val_batch (rank 1)", None),
        ("fsdp", "empty", "non-finite loss on val_batch (rank 1)", None),
        ("ddp", "no loss 0", "no loss on batch1: loss_fn returned None (rank 1)", None),
        ("fsdp", "no loss 0", "no loss on batch1: loss_fn returned None (rank 1)", None),
        ("ddp", "no loss 1", "no loss on batch2: loss_fn returned None (rank 1)", None),
        ("fsdp", "no loss 1", "no loss on batch2: loss_fn returned None (rank 1)", None),
        ("ddp", "no loss 2", "no loss on val_batch: loss_fn returned None (rank 1)", None),
        ("fsdp", "no loss 2", "no loss on val_batch: loss_fn returned None (rank 1)", None),
        ("ddp", "seed", "ValueError: update_attention must be called alike", None),
        ("fsdp", "seed", "on rank 1", None),
    ],
)
def test_fault_of_one_rank(
    wrap: str,
    fault: str,
    on_rank_1: str,
    elsewhere: str | None,
    processes: Callable[[int], Processes],
) -> None:
    """Caught on all, which then go on as if nothing had been."""
    case = replace(LOOKAHEAD, wrap=wrap, batch_norm=True)
    group = processes(2)
    (first, params), (second, _) = group.run(update_with, case, fault)
    assert on_rank_1 in second
    assert (elsewhere or on_rank_1) in first
    if fault != "seed":
        reference = group.run(update_with, replace(case, meta={"lr": 0.0}), "")[0]
        assert reference[0] is None
        assert torch.equal(params, reference[1])


def smaller_batch(case: Case) -> None:
    model, optimizer = build(case)
    shard = data_shard(case)
    batches: list[Any] = [batch_of(1000 + i, shard=shard) for i in range(3)]
    if dist.get_rank() == 1:
        batches[1] = tuple(t[:3] for t in batches[1])
    with pytest.warns(UserWarning, match="batch2 has a different number.*8 on rank 0, 3 on rank 1"):
        assert optimizer.update_attention(model, loss_fn, *batches).applied


@pytest.mark.parametrize("wrap", ["ddp", "fsdp"])
def test_batches_of_different_sizes_are_named(
    wrap: str, processes: Callable[[int], Processes]
) -> None:
    processes(2).check(smaller_batch, replace(LOOKAHEAD, wrap=wrap))


def pending(case: Case) -> None:
    model, optimizer = build(case)
    model.set_requires_gradient_sync(False)
    loss_fn(model, batch_of(0, shard=data_shard(case))).backward()
    batches = [batch_of(1000 + i, shard=data_shard(case)) for i in range(3)]
    optimizer.update_attention(model, loss_fn, *batches)


def exact(case: Case) -> None:
    model, optimizer = build(replace(case, meta={"hvp": "exact"}))
    batches = [batch_of(1000 + i, shard=data_shard(case)) for i in range(3)]
    optimizer.update_attention(model, loss_fn, *batches)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (pending, "call it after the last micro-batch"),
        (exact, "hvp='exact' needs a second derivative"),
    ],
)
def test_refused(
    function: Callable[[Case], None], message: str, processes: Callable[[int], Processes]
) -> None:
    outcomes = processes(2).outcomes(function, replace(LOOKAHEAD, wrap="fsdp"))
    assert all(isinstance(o, Raised) and message in o.message for o in outcomes)


def unwrapped(case: Case) -> None:
    model, optimizer = build(case)
    batches = [batch_of(1000 + i) for i in range(3)]
    with pytest.warns(UserWarning, match="one of 2 processes.*neither DistributedDataParallel"):
        optimizer.update_attention(model, loss_fn, *batches)


def test_model_without_its_wrapper(processes: Callable[[int], Processes]) -> None:
    processes(2).check(unwrapped, LOOKAHEAD)


def mean_of_gradients() -> None:
    model = DistributedDataParallel(Net().to(device()))
    params = list(model.parameters())
    rank, size = dist.get_rank(), dist.get_world_size()
    shared = torch.full((), float(rank), device=device())
    grads = [shared.expand(p.shape) for p in params]  # one tensor behind all of them
    grads[0] = None
    grads[1] = None if rank else torch.ones_like(params[1])
    first, second, *others = Ranks(model, None).mean(params, grads)
    assert first is None
    assert torch.equal(second, torch.full_like(params[1], 1 / size))
    for grad in others:
        assert torch.equal(grad, torch.full_like(grad, (size - 1) / 2))


def test_mean_of_gradients_with_some_missing(processes: Callable[[int], Processes]) -> None:
    processes(2).check(mean_of_gradients)


def traffic(case: Case) -> tuple[int, int, int]:
    """Numbers in all-reduces and in all other collectives of a meta-update, and in the model."""
    model, optimizer = build(case)
    backward(model, case, 0)
    backward(model, case, 1)  # here DDP agrees on its buckets
    optimizer.step()
    batches = [batch_of(1000 + i, shard=data_shard(case)) for i in range(3)]
    optimizer.update_attention(model, loss_fn, *batches)  # compares an exact product once
    with Collectives() as collectives:
        optimizer.update_attention(model, loss_fn, *batches)
    reduced = sum(n for name, n in collectives.seen if name == "allreduce_")
    everything = sum(n for _, n in collectives.seen)
    return reduced, everything - reduced, sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("hvp", "gradients"), [("exact", 4), ("finite_difference", 5)])
def test_traffic(hvp: str, gradients: int, processes: Callable[[int], Processes]) -> None:
    """A gradient for each backward pass, and a few bytes of losses and errors."""
    case = replace(LOOKAHEAD, wrap="ddp", meta={"hvp": hvp})
    for reduced, others, size in processes(2).run(traffic, case):
        assert reduced == gradients * size
        assert others < 10_000
