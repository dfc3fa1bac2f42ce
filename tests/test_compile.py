"""Under torch.compile: compiled models learn, the step is the eager one, nothing compiles twice.

The backend is "aot_eager", the compiler's front half without the generated code: it decides what is
traced, when it is traced again, and what can be differentiated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from metaadamw import Attention, LookAhead, MetaAdamW, fine_grained_groups
from tests.learning import learning_of
from tests.training import assert_same

XAVIER = Attention(init="xavier", layers=1)
ROWS = torch.randn(96, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
BATCHES = [ROWS[:32], ROWS[32:64], ROWS[64:]]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def loss_fn(model: nn.Module, rows: Tensor) -> Tensor:
    return (model(rows) - rows.sin().sum(1, keepdim=True)).square().mean()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).double()


def whole(model: nn.Sequential) -> nn.Module:
    return torch.compile(model, backend="aot_eager")  # type: ignore[return-value]


def one_layer(model: nn.Sequential) -> nn.Module:
    model[2] = torch.compile(model[2], backend="aot_eager")  # type: ignore[assignment]
    return model


def run(
    compiled: Callable[[nn.Sequential], nn.Module] | None, **meta: Any
) -> tuple[list[str | None], dict[str, Any]]:
    """Six steps, three meta-updates; the products used, and what was learned."""
    model: nn.Module = network()
    if compiled is not None:
        model = compiled(model)  # type: ignore[arg-type]
    config = LookAhead(every=2, lr=1e-1, **meta)
    optimizer = MetaAdamW(fine_grained_groups(model), lr=1e-2, modulator=XAVIER, learning=config)
    used: list[str | None] = []
    for _ in range(6):
        optimizer.zero_grad()
        loss_fn(model, ROWS).backward()
        optimizer.step()
        if optimizer.meta_update_due:
            update = optimizer.update_attention(model, loss_fn, *BATCHES)
            assert update.applied
            used.append(update.hvp)
    learned = optimizer.meta_state_dict()["modulator"]
    return used, {"params": [p.detach() for p in model.parameters()], "learned": learned}


@pytest.mark.parametrize("compiled", [whole, one_layer])
def test_a_compiled_model_takes_differences(compiled: Callable[[nn.Sequential], nn.Module]) -> None:
    """It has no second derivative; what is learned is what the eager model learns by them."""
    used, results = run(compiled)
    assert used == ["finite_difference"] * 3
    expected_used, expected = run(None, hvp="finite_difference")
    assert expected_used == used
    assert_same(results, expected)
    exact_used, exact = run(None)
    assert exact_used == ["exact"] * 3
    for name, value in exact["learned"].items():
        torch.testing.assert_close(results["learned"][name], value, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("donated", [True, False])
def test_exact_on_a_compiled_model_is_refused(donated: bool) -> None:
    """Both ways in which torch says so; parameters and modulator stay."""
    with (
        torch._functorch.config.patch(donated_buffer=donated),
        pytest.raises(RuntimeError, match=r"hvp='exact'.*hvp='finite_difference' needs none"),
    ):
        run(whole, hvp="exact")
    with torch._functorch.config.patch(donated_buffer=donated):
        assert run(whole)[0] == ["finite_difference"] * 3


LR = {"float": 1e-2, "tensor": torch.tensor(1e-2)}


@pytest.mark.parametrize("path", [{"foreach": False}, {"foreach": True, "capturable": True}])
@pytest.mark.parametrize("lr", LR.values(), ids=LR)
@pytest.mark.parametrize("mode", ["online", "lookahead"])
def test_a_compiled_training_step(mode: Any, lr: float | Tensor, path: dict[str, bool]) -> None:
    """Model, loss and step in one compiled function, under a scheduler: eager's numbers.

    α and β move at every step or meta-update, lr at every step; after the first steps nothing is
    compiled any more.
    """

    def train(compiled: bool) -> dict[str, Any]:
        model = network()
        optimizer = MetaAdamW(
            fine_grained_groups(model),
            lr=lr.clone() if isinstance(lr, Tensor) else lr,
            modulator=XAVIER,
            learning=learning_of(mode, every=2, lr=1e-1),
            **path,
        )
        scheduler = lr_scheduler.LambdaLR(optimizer, lambda t: 1 + math.sin(t))
        alphas = []

        def training_step() -> None:
            optimizer.zero_grad()
            loss_fn(model, ROWS).backward()
            optimizer.step()

        step = torch.compile(training_step, backend="aot_eager") if compiled else training_step
        for index in range(10):
            with torch._dynamo.config.patch(error_on_recompile=index >= 3):
                step()
                if optimizer.meta_update_due:
                    optimizer.update_attention(model, loss_fn, *BATCHES)
            scheduler.step()
            alphas.append(optimizer.modulation.alpha.clone())
        assert len({tuple(a.tolist()) for a in alphas}) == 10
        return {"alphas": alphas, "params": [p.detach() for p in model.parameters()]}

    assert_same(train(compiled=True), train(compiled=False))


def test_a_compiled_model_is_not_compiled_again_by_meta_updates() -> None:
    """Not even by the first: all its losses have a graph, as those of the training."""
    model = whole(network())
    optimizer = MetaAdamW(
        fine_grained_groups(model), modulator=XAVIER, learning=LookAhead(every=1, lr=1e-1)
    )
    for index in range(4):
        with torch._dynamo.config.patch(error_on_recompile=index >= 1):
            optimizer.zero_grad()
            loss_fn(model, ROWS[:32]).backward()
            optimizer.step()
        with torch._dynamo.config.patch(error_on_recompile=True):
            assert optimizer.update_attention(model, loss_fn, *BATCHES).applied


def test_the_step_is_not_traced() -> None:
    """Asked for one graph, the compiler says where it stops instead of tracing something else."""
    model = network()
    optimizer = MetaAdamW(model.parameters(), learning="lookahead")
    loss_fn(model, ROWS).backward()
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"MetaAdamW\._step"):
        torch.compile(optimizer.step, backend="aot_eager", fullgraph=True)()
