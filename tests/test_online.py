"""Online mode: the closed form of the signal against stored parameters and directions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from metaadamw import Attention, Hypergradient, MetaAdamW
from tests.reference.adamw import step_tensors
from tests.reference.online import OnlineSignal, cosine_signal, online_gradient, raw_signal
from tests.reference.state import (
    ReferenceGroup,
    ReferenceState,
    groups_from_optimizer,
    state_from_optimizer,
)
from tests.twin import (
    META_LR,
    Problem,
    assert_close,
    reference_modulator,
    small_batch,
    small_groups,
    small_model,
)

FEATURES = ["basic", "basic_plus", "enhanced", "norm_basic", "norm_basic_plus", "scale_free"]


def double(tensors: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Copies in float64 of the tensors that are there."""
    return {n: t.detach().to(torch.float64, copy=True) for n, t in tensors.items() if t is not None}


def expected_signal(memory: dict[str, Any], grads: Mapping[str, Tensor | None]) -> OnlineSignal:
    """The cosines; 0 where the slope itself is 0, as without learning rate or weight decay."""
    arguments = memory["groups"], memory["theta"], memory["d"], grads
    slopes, cosines = raw_signal(*arguments, memory["alpha"]), cosine_signal(*arguments)
    return OnlineSignal(cosines.alpha * (slopes.alpha != 0), cosines.beta * (slopes.beta != 0))


def run_beside_the_twin(
    problem: Problem,
    *,
    steps: int = 6,
    missing: Callable[[int, int], bool] = lambda step, index: False,
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
    batch: Callable[[], Any] = small_batch,
    tolerance: float = 1e-9,
) -> int:
    """Train; after each step compare the movement of the modulator with the twin's gradient.

    The twin keeps theta_t, d_t and the features of step t; the library recovers them. Recovering
    theta_t divides by 1 - eta alpha beta lambda > 0.9 and costs a few units in 1e-16; the encoder's
    vjp multiplies by less than 1e3: 1e-9.

    Returns:
        The number of steps in which the modulator moved.
    """
    optimizer, meta = problem.optimizer, problem.meta
    named = list(problem.model.named_parameters())
    schedule = None if scheduler is None else scheduler(optimizer)
    memory: dict[str, Any] | None = None
    learned = 0
    for step in range(steps):
        optimizer.zero_grad()
        problem.loss_fn(problem.model, batch()).backward()
        for index, (_, param) in enumerate(named):
            if missing(step, index):
                param.grad = None
        grads = double({name: param.grad for name, param in named})
        groups = groups_from_optimizer(optimizer, named)
        state = state_from_optimizer(optimizer, named)
        twin, before = reference_modulator(optimizer), problem.weights()
        optimizer.step()
        movement = double({n: (w - problem.weights()[n]) / META_LR for n, w in before.items()})

        refreshed = bool(grads) and step % problem.config.update_every == 0
        if memory is None or not refreshed or step < meta.warmup_steps:
            expected = {name: torch.zeros_like(weight) for name, weight in movement.items()}
        else:
            signal = expected_signal(memory, grads)
            expected = online_gradient(
                twin,
                memory["features"],
                signal,
                weight_decay=meta.weight_decay,
                gate_sparsity=problem.config.gate_sparsity,
            )
            learned += 1
            assert signal.alpha.any()
            assert signal.beta.any()
        assert_close(movement, expected, tolerance)

        if grads:  # otherwise the step before is still the last one
            memory = memory_of(problem, state, groups, grads)
        if schedule is not None:
            schedule.step()
    return learned


def memory_of(
    problem: Problem,
    state: ReferenceState,
    groups: list[ReferenceGroup],
    grads: Mapping[str, Tensor | None],
) -> dict[str, Any]:
    """theta_t and d_t of the step that was just taken, and what alpha and beta came from."""
    optimizer = problem.optimizer
    assert optimizer.features is not None
    state = ReferenceState(
        parameters=double(state.parameters),
        exp_avg=double(state.exp_avg),
        exp_avg_sq=double(state.exp_avg_sq),
        steps=state.steps,
    )
    alpha, beta = (f.detach().double() for f in optimizer.modulation[:2])
    eps_inside_sqrt = problem.options.get("eps_inside_sqrt", False)
    stepped = step_tensors(state, groups, grads, alpha, beta, eps_inside_sqrt=eps_inside_sqrt)
    return {
        "groups": groups,
        "theta": state.parameters,
        "d": {name: tensor.direction for name, tensor in stepped.items()},
        "features": optimizer.features.double().clone(),
        "alpha": alpha,
    }


def online(modulator: dict[str, Any] | None = None, **meta: Any) -> Problem:
    return Problem(modulator, {"mode": "online", **meta}, steps=0)


@pytest.mark.parametrize("features", FEATURES)
def test_movement_of_each_feature_set(features: str) -> None:
    assert run_beside_the_twin(online({"features": features})) == 5


@pytest.mark.parametrize(
    "problem",
    [
        functools.partial(online, weight_decay=1e-2),
        functools.partial(online, {"feature_gating": True}, weight_decay=1e-2),
        functools.partial(online, {"feature_gating": True}, gate_sparsity=0.3),
        functools.partial(online, {"init": "identity"}),
        functools.partial(online, {"layers": 3, "heads": 2, "hidden_dim": 5, "beta_range": 0.4}),
        functools.partial(Problem, None, {"mode": "online"}, steps=0, eps_inside_sqrt=True),
        functools.partial(Problem, None, {"mode": "online"}, steps=0, foreach=True),
        functools.partial(Problem, None, {"mode": "online"}, steps=0, fused=True),
        functools.partial(
            Problem,
            None,
            {"mode": "online"},
            steps=0,
            groups=nn.Module.named_parameters,
            lr=torch.tensor(0.05, dtype=torch.float64),
        ),
    ],
    ids=[
        "decay",
        "gating",
        "sparsity",
        "identity",
        "larger",
        "eps-inside",
        "foreach",
        "fused",
        "lr-tensor",
    ],
)
def test_movement_under_other_options(problem: Callable[[], Problem]) -> None:
    assert run_beside_the_twin(problem()) == 5


def test_movement_with_missing_gradients() -> None:
    """A tensor may lack its gradient now or in the step before; once all of them do."""

    def missing(step: int, index: int) -> bool:
        return (step + index) % 3 == 0 or step == 4

    assert run_beside_the_twin(online(), steps=10, missing=missing) == 8


@pytest.mark.parametrize(
    "scheduler",
    [
        functools.partial(lr_scheduler.StepLR, step_size=1, gamma=0.5),
        functools.partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=12),  # moves beta1
    ],
    ids=["step", "one-cycle"],
)
def test_movement_while_a_scheduler_runs(scheduler: Callable[..., Any]) -> None:
    """Step t was taken with the hyperparameters of then, not with those of now."""
    assert run_beside_the_twin(online(), scheduler=scheduler) == 5


def test_groups_without_learning_rate_or_weight_decay() -> None:
    """alpha does nothing in the one, beta in neither: no signal for what has no effect."""

    def groups(model: nn.Module) -> list[dict[str, Any]]:
        first, second, third = small_groups(model)
        return [first | {"weight_decay": 0.0}, second | {"lr": 0.0}, third]

    problem = Problem(None, {"mode": "online"}, steps=0, groups=groups)
    assert run_beside_the_twin(problem) == 5


def test_movement_in_single_precision() -> None:
    """6e-8 of the weights lost in the difference, over META_LR, and some 100 roundings: 1e-5."""
    problem = Problem(None, {"mode": "online"}, steps=0, model=lambda: small_model().float())

    def batch() -> tuple[Tensor, Tensor]:
        inputs, targets = small_batch()
        return inputs.float(), targets.float()

    assert run_beside_the_twin(problem, batch=batch, tolerance=1e-5) == 5


def test_movement_between_refreshes() -> None:
    assert run_beside_the_twin(online({"update_every": 3}), steps=10) == 3


def test_movement_after_warm_up() -> None:
    assert run_beside_the_twin(online(warmup_steps=3), steps=6) == 3


def test_signal_is_the_slope_of_the_loss_in_alpha_and_beta() -> None:
    """On one batch seen twice, going further along d lowers the loss: alpha must rise.

    With identity birth the gradient of the output bias is the sum of three signals, cosines,
    times the sigmoid's slope at 0, 1/4.
    """
    problem = online({"init": "identity", "alpha_range": 1.0})
    batch = small_batch()
    problem.train(batch)
    problem.train(batch)
    movement = -problem.weights()["output_bias"] / META_LR
    assert -0.25 * 3 <= movement[0] < 0
    assert movement[1] != 0
    assert not movement[2:].any()  # no signal for lambda1 and lambda2


def test_maximize_mirrors_minimisation() -> None:
    """Turned gradients everywhere: bit-identical, since a change of sign is exact."""
    down = Problem(None, {"mode": "online"}, steps=8)
    up = Problem(
        None,
        {"mode": "online"},
        steps=8,
        maximize=True,
        loss_fn=lambda model, batch: -down.loss_fn(model, batch),
    )
    for name, weight in down.weights().items():
        assert torch.equal(up.weights()[name], weight)
    for own, other in zip(up.model.parameters(), down.model.parameters(), strict=True):
        assert torch.equal(own, other)


def tensors_in(thing: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor that can be reached from an object through attributes and containers."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
        if thing.grad_fn is not None:
            yield from tensors_in(thing.grad_fn, seen)
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from tensors_in(value, seen)
    elif isinstance(thing, (list, tuple, set)):
        for value in thing:
            yield from tensors_in(value, seen)
    elif type(thing).__module__.startswith(("metaadamw", "torch.nn")):
        yield from tensors_in(vars(thing), seen)


def test_nothing_of_the_size_of_the_parameters_is_kept() -> None:
    model = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 100))
    optimizer = MetaAdamW(model.named_parameters(), modulator=Attention(), learning=Hypergradient())
    for _ in range(3):
        model(torch.randn(4, 100)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    for state in optimizer.state.values():
        assert set(state) == {"step", "exp_avg", "exp_avg_sq"}
    params = [p for group in optimizer.param_groups for p in group["params"]]
    known = {t.data_ptr() for s in optimizer.state.values() for t in s.values()}
    known |= {p.data_ptr() for p in params}
    found = {t.data_ptr(): t.numel() for t in tensors_in(optimizer, set())}
    assert known <= set(found)  # the walk does reach what is there
    others = sum(size for address, size in found.items() if address not in known)
    assert others < 5000  # the modulator and its Adam moments; one buffer would be 20,200


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_groups_that_start_at_zero(dtype: torch.dtype) -> None:
    """Recovering θ_t = 0 from θ_{t+1} leaves rounding error, which has no direction."""
    trajectories = []
    for precision in (dtype, torch.float64):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 50), nn.Tanh(), nn.Linear(50, 3)).to(precision)
        for layer in (model[0], model[2]):
            nn.init.zeros_(layer.bias)
        groups = [{"params": [p]} for p in model.parameters()]
        meta = Hypergradient(optimizer="sgd", lr=0.1, weight_decay=0.0)
        optimizer = MetaAdamW(groups, lr=1e-2, modulator="attention", learning=meta)
        data = torch.randn(4, 16, 6, dtype=torch.float64).to(precision)
        alphas = []
        for x in data:
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            alphas.append(torch.stack(optimizer.modulation[:2]).double())
        trajectories.append(torch.stack(alphas))
    assert (trajectories[1] - 1).abs().max() > 1e-3
    torch.testing.assert_close(*trajectories, rtol=1e-4, atol=1e-4)
