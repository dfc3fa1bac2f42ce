"""What a meta-update must not touch beyond its model: other networks, hooks, other threads."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from metaadamw import Attention, LookAhead, MetaAdamW, fine_grained_groups
from metaadamw.learning.lookahead.evaluation import twice_differentiable
from metaadamw.learning.lookahead.switches import Switch
from tests.training import assert_same, snapshot

PRODUCTS = ("auto", "exact", "finite_difference")
products = pytest.mark.parametrize("hvp", PRODUCTS)


class Failure(Exception):
    pass


# Other networks ----------------------------------------------------------------------------------


class Average(nn.Module):
    """An average that each call replaces, counts, and notes in a buffer made at the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(2))
        self.register_buffer("seen", None)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.average = 0.9 * self.average + 0.1 * x.detach().mean(0)
        self.seen = x.detach()[0]
        self.calls += 1
        if not hasattr(self, "made"):
            self.register_buffer("made", torch.ones(1))
        return x - self.average


class Inner(nn.Module):
    """Calls its part not as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm.forward(x)


class Switching(nn.Module):
    """Changes its flags as it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> Tensor:
        result = self.norm(x)
        self.norm.train(not self.norm.training)
        return result


CRITICS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)),
    "nested": lambda: nn.Sequential(nn.Sequential(nn.Sequential(nn.BatchNorm1d(2)))),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)),
    "old spectral norm": lambda: nn.utils.spectral_norm(nn.Linear(2, 2)),
    "average": Average,
    "not as a module": Inner,
    "flags": Switching,
    "scripted": lambda: torch.jit.script(nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))),
}


def state_of(module: nn.Module) -> dict[str, Any]:
    if isinstance(module, torch.jit.ScriptModule):
        return {name: tensor.clone() for name, tensor in module.state_dict().items()}
    own = {name: dict(m._buffers) for name, m in module.named_modules()}
    return snapshot(module) | {
        "tables": {n: {k: id(b) for k, b in buffers.items()} for n, buffers in own.items()}
    }


def generator(**meta: Any) -> tuple[nn.Module, MetaAdamW, list[Tensor]]:
    model = nn.Linear(3, 2)
    config = LookAhead(every=1, optimizer="adam", lr=1e-2, **meta)
    optimizer = MetaAdamW(
        fine_grained_groups(model), modulator=Attention(init="xavier"), learning=config
    )
    return model, optimizer, list(torch.randn(4, 16, 3))


@products
@pytest.mark.parametrize("raises", [None, 1, 3])
@pytest.mark.parametrize("kind", CRITICS)
def test_another_network_in_the_loss_is_put_back(kind, raises, hvp):
    model, optimizer, data = generator(hvp=hvp)
    critic = CRITICS[kind]()
    calls = 10

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        value = critic(model(x)).square().mean()
        if calls == raises:
            raise Failure
        return value

    if kind != "flags":
        loss(model, data[0]).backward()  # gradients of the critic as well
    optimizer.step()
    calls, before = 0, state_of(critic)
    if raises is None:
        assert optimizer.update_attention(model, loss, *data[1:]).applied
    else:
        with pytest.raises(Failure):
            optimizer.update_attention(model, loss, *data[1:])
    assert calls
    assert_same(state_of(critic), before)
    loss(model, data[0])  # and it goes on working
    if kind in ("batch norm", "nested", "average", "not as a module"):
        changed = [
            not torch.equal(b, before["buffers"][n])
            for n, b in critic.named_buffers()
            if n in before["buffers"]
        ]
        assert any(changed)


def test_other_buffers_by_functional_call_stay_those_of_the_module():
    """A module keeps its own buffers where the loss lends it others, before or after a call."""
    for order in ((0, 1), (1, 0), (0,), (1,)):
        model, optimizer, data = generator()
        critic = nn.BatchNorm1d(2)
        own, lent = dict(critic._buffers), {k: v.clone() for k, v in critic.named_buffers()}
        before = {k: v.clone() for k, v in own.items()}

        def loss(model: nn.Module, x: Tensor, order=order, critic=critic, lent=lent) -> Tensor:
            ways = (critic, lambda y: torch.func.functional_call(critic, lent, (y,)))
            return sum(ways[way](model(x)).square().mean() for way in order)

        assert optimizer.update_attention(model, loss, *data[1:]).applied
        assert all(critic._buffers[name] is buffer for name, buffer in own.items())
        assert_same(dict(critic.named_buffers()), before)
        assert_same(lent, before)


def test_a_loss_that_vectorises_a_network():
    model, optimizer, data = generator()
    critics = [nn.Sequential(nn.Linear(2, 2), nn.Tanh()) for _ in range(3)]
    params, buffers = torch.func.stack_module_state(critics)
    base = copy.deepcopy(critics[0])
    before = state_of(base)

    def one(params: Any, buffers: Any, x: Tensor) -> Tensor:
        return torch.func.functional_call(base, (params, buffers), (x,))

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return torch.vmap(one, (0, 0, None))(params, buffers, model(x)).square().mean()

    assert optimizer.update_attention(model, loss, *data[1:]).applied
    assert_same(state_of(base), before)


def test_calls_are_watched_only_meanwhile_and_only_in_this_thread():
    call = nn.Module.__call__
    model, optimizer, data = generator()
    norm, seen = nn.BatchNorm1d(2), []

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        thread = threading.Thread(target=lambda: norm(torch.randn(4, 2)))
        thread.start()
        thread.join()
        seen.append(nn.Module.__call__ is call)
        return model(x).square().mean()

    assert optimizer.update_attention(model, loss, *data[1:]).applied
    assert not any(seen)
    assert nn.Module.__call__ is call
    assert norm.num_batches_tracked == len(seen)  # another thread's work is its own


# Hooks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hvp", "reentrant"),  # no exact product through such a checkpoint
    [*((hvp, False) for hvp in PRODUCTS), ("auto", True), ("finite_difference", True)],
)
@pytest.mark.parametrize("raises", [False, True])
def test_hooks_of_the_backward_pass_rest(hvp, reentrant, raises):
    """Watchers of gradients see the training's only, and are afterwards as they were."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    critic = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = MetaAdamW(fine_grained_groups(model), learning=LookAhead(every=1, hvp=hvp))
    seen: list[str] = []
    handles: dict[str, Any] = {}

    def watch(name: str, register: Callable[[Callable[..., None]], Any]) -> None:
        handles[name] = register(lambda *args: seen.append(name))

    for part, network in (("model", model), ("critic", critic)):
        for i, param in enumerate(network.parameters()):
            watch(f"{part} gradient {i}", param.register_hook)
            watch(f"{part} again {i}", param.register_hook)
            watch(f"{part} accumulated {i}", param.register_post_accumulate_grad_hook)
        for i, module in enumerate(network.modules()):
            watch(f"{part} module {i}", module.register_full_backward_hook)
            watch(f"{part} module before {i}", module.register_full_backward_pre_hook)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        hidden = (
            checkpoint(model, x.requires_grad_(), use_reentrant=True) if reentrant else model(x)
        )
        if raises and not seen and len(calls) == 3:
            raise Failure
        calls.append(1)
        return critic(hidden).square().mean()

    calls: list[int] = [0] * 10
    data = torch.randn(4, 8, 3).unbind()
    data = [x.clone() for x in data]
    loss(model, data[0]).backward()
    optimizer.step()
    trained = list(seen)
    assert {name.split()[0] for name in trained} == {"model", "critic"}
    tables = [
        (owner, name, getattr(owner, name), list((getattr(owner, name) or {}).items()))
        for network in (model, critic)
        for owner in (*network.parameters(), *network.modules())
        for name in ("_backward_hooks", "_post_accumulate_grad_hooks", "_backward_pre_hooks")
        if hasattr(owner, name)
    ]
    seen.clear()
    calls.clear()
    if raises:
        with pytest.raises(Failure):
            optimizer.update_attention(model, loss, *data[1:])
    else:
        assert optimizer.update_attention(model, loss, *data[1:]).applied
    assert seen == []
    for owner, name, table, items in tables:
        assert getattr(owner, name) is table
        assert list((table or {}).items()) == items
    calls.extend([0] * 10)
    model.zero_grad()
    critic.zero_grad()
    loss(model, data[0]).backward()
    assert seen == trained
    seen.clear()
    for handle in handles.values():
        handle.remove()
    loss(model, data[0]).backward()
    assert seen == []


def test_hooks_that_the_loss_itself_sets():
    """They act within the loss, as in training; those on parameters do not stay."""
    model, optimizer, data = generator(hvp="finite_difference")
    scaled: list[float] = []

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        output = model(x)
        output.register_hook(lambda grad: scaled.append(0.0))
        model.weight.register_hook(lambda grad: scaled.append(1.0))
        return output.square().mean()

    assert optimizer.update_attention(model, loss, *data[1:]).applied
    assert set(scaled) == {0.0, 1.0}
    assert not model.weight._backward_hooks


def test_forward_hooks_stay():
    """A loss may need what they collect."""
    model, optimizer, data = generator()
    features: list[Tensor] = []
    model.register_forward_hook(lambda module, args, output: features.append(output))

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        features.clear()
        model(x)
        return features[0].square().mean()

    assert optimizer.update_attention(model, loss, *data[1:]).applied


# Threads -----------------------------------------------------------------------------------------


def kernels() -> tuple[bool, ...]:
    cuda = torch.backends.cuda
    return (
        *(cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()),
        *(cuda.cudnn_sdp_enabled(), torch.backends.cudnn.enabled),
    )


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_threads_that_overlap_put_the_kernels_back(order, flash):
    """Whoever leaves first; each thread for itself would put back what another has switched."""
    torch.backends.cuda.enable_flash_sdp(flash)
    try:
        before, inside = kernels(), []
        leave = [threading.Event() for _ in order]
        entered = threading.Barrier(len(order) + 1, timeout=10)

        def work(event: threading.Event) -> None:
            with twice_differentiable():
                entered.wait()
                event.wait(10)
                inside.append(kernels())

        threads = [threading.Thread(target=work, args=(event,)) for event in leave]
        for thread in threads:
            thread.start()
        entered.wait()
        for index in order:
            leave[index].set()
            threads[index].join(10)
        assert kernels() == before
        assert set(inside) == {(False, False, True, False, False)}
    finally:
        torch.backends.cuda.enable_flash_sdp(True)


def test_a_switch_that_cannot_be_turned_stays_off():
    states = ["off"]

    class Turn:
        def __enter__(self) -> None:
            if len(states) == 1:
                states.append("broken")
                raise Failure
            states.append("on")

        def __exit__(self, *error: object) -> None:
            states.append("off")

    switch = Switch(Turn)
    with pytest.raises(Failure), switch():
        pass
    with pytest.raises(LookupError), switch(), switch():
        raise LookupError
    assert states == ["off", "broken", "on", "off"]


@pytest.mark.parametrize("hvp", ["auto", "finite_difference"])
def test_meta_updates_in_several_threads_are_those_of_one(hvp):
    """With dropout: none rewinds the random numbers of another in the middle of a difference."""
    network = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 1)).double()
    data = torch.randn(4, 16, 3, dtype=torch.float64)
    start = torch.get_rng_state()

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return model(x).square().mean()

    def train(results: list[float], updates: int) -> None:
        model = copy.deepcopy(network)
        meta = LookAhead(every=1, hvp=hvp, lr=0.0, objective="gradient_alignment")
        optimizer = MetaAdamW(fine_grained_groups(model), modulator="attention", learning=meta)
        for _ in range(updates):
            update = optimizer.update_attention(model, loss, *data[1:])
            assert update.applied
            results.append(update.total or 0.0)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone: list[float] = []
        train(alone, 1)
        assert torch.equal(torch.get_rng_state(), start)
        together: list[list[float]] = [[] for _ in range(3)]
        threads = [threading.Thread(target=train, args=(r, 8)) for r in together]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert torch.equal(torch.get_rng_state(), start)
    assert {value for results in together for value in results} == set(alone)
    assert [len(results) for results in together] == [8, 8, 8]
    assert kernels() == (True, True, True, True, True)
