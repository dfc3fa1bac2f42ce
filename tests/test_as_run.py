"""``as_run``: each departure of the authors' code does what its name says, and nothing else."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from metaadamw import Attention, LookAhead, MetaAdamW, paper_preset
from tests.reference.adamw import bias_corrected, reference_step
from tests.reference.features import group_features as reference_features
from tests.reference.meta import gradients_at, loss_at
from tests.reference.modulator import modulator_gradient
from tests.reference.state import fresh_state, groups_from_optimizer, state_from_optimizer
from tests.twin import (
    Problem,
    assert_close,
    expected_movement,
    reference_modulator,
    small_batch,
    small_groups,
    small_model,
)

# Rounding of closed form against autograd, as in test_lookahead.py.
TOLERANCE = 1e-11


def problem(*as_run: str, **modulator: Any) -> Problem:
    return Problem(modulator, {"as_run": as_run, "gap_at": "theta_prime", "weight_decay": 1e-3})


def test_detached_beta() -> None:
    """Item 1: the meta-gradient without what flows through beta; values as ever."""
    case = problem("detached_beta")
    reference = case.expected()
    twin = reference_modulator(case.optimizer)
    through_beta = modulator_gradient(reference.beta_gradient @ twin(reference.features).beta, twin)
    expected = {name: g - through_beta[name] for name, g in reference.gradients.items()}
    update, movement = case.movement()
    assert update.total == pytest.approx(reference.value.item(), rel=1e-12)
    assert_close(movement, expected | {"raw": reference.log_variance_gradient}, TOLERANCE)
    assert through_beta["output_bias"].any()


@pytest.mark.parametrize("steps", [0, 3])
def test_stored_moments(steps: int) -> None:
    """Item 4: theta' from the moments as they are; without moments the step is the decay alone."""
    case = Problem(meta={"as_run": ("stored_moments",), "objective": "loss_decrease"}, steps=steps)
    named = list(case.model.named_parameters())
    groups = groups_from_optimizer(case.optimizer, named)
    state = state_from_optimizer(case.optimizer, named)
    twin = reference_modulator(case.optimizer)
    theta = {name: p.detach().clone().requires_grad_() for name, p in named}
    g = gradients_at(case.model, case.loss_fn, theta, case.batches["batch1"], create_graph=False)
    features = reference_features(
        "basic",
        groups,
        theta,
        g,
        state.exp_avg,
        state.exp_avg_sq,
        step=case.optimizer.steps + 1,
        total_steps=20,
    )
    modulation = twin(features)
    theta_prime: dict[str, Tensor] = {}
    for index, group in enumerate(groups):
        for name in group.names:
            m, v, t = state.moments(name)
            d = modulation.beta[index] * group.weight_decay * theta[name].detach()
            if t:
                m_hat, v_hat = (
                    bias_corrected(m, group.betas[0], t),
                    bias_corrected(v, group.betas[1], t),
                )
                d = d + m_hat / (v_hat.sqrt() + group.eps)
            theta_prime[name] = theta[name].detach() - group.lr * modulation.alpha[index] * d
    val_batch = case.batches["val_batch"]
    before = loss_at(case.model, case.loss_fn, theta, val_batch).detach()
    decrease = loss_at(case.model, case.loss_fn, theta_prime, val_batch) - before
    expected = modulator_gradient(decrease, twin)
    update, movement = case.movement()
    assert update.loss_decrease == pytest.approx(decrease.item(), rel=1e-12)
    assert not movement.pop("raw").any()
    assert_close(movement, expected, TOLERANCE)
    assert expected["output_bias"][:2].all()


def test_frozen_gates() -> None:
    """Item 6: the gates never learn, all else does."""
    case = problem(feature_gating=True, frozen_gates=True)
    expected = expected_movement(case.expected())
    assert expected["gate_logits"].all()
    expected["gate_logits"] = torch.zeros_like(expected["gate_logits"])
    assert_close(case.movement()[1], expected, TOLERANCE)


def test_bias_corrected_decay_in_the_lookahead() -> None:
    """Item 2: the decay divided by 1 - beta1^t."""
    case = problem("bias_corrected_decay")
    groups = groups_from_optimizer(case.optimizer, case.model.named_parameters())
    t = case.optimizer.steps + 1
    divided = [
        dataclasses.replace(group, weight_decay=group.weight_decay / (1 - group.betas[0] ** t))
        for group in groups
    ]
    expected = expected_movement(case.expected(groups=divided))
    assert_close(case.movement()[1], expected, TOLERANCE)


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}], ids=str)
def test_bias_corrected_decay_in_the_step(options: dict[str, bool]) -> None:
    """Item 2 again: ten times the decay at the first step, AdamW's in the long run."""
    model = small_model()
    meta = LookAhead(as_run=("bias_corrected_decay",))
    optimizer = MetaAdamW(small_groups(model), learning=meta, **options)  # type: ignore[arg-type]
    groups = groups_from_optimizer(optimizer, model.named_parameters())
    state = fresh_state(dict(model.named_parameters()))
    for t in range(1, 11):
        inputs, targets = small_batch()
        optimizer.zero_grad()
        (model(inputs) - targets).square().mean().backward()
        grads = {name: p.grad for name, p in model.named_parameters()}
        divided = [
            dataclasses.replace(group, weight_decay=group.weight_decay / (1 - group.betas[0] ** t))
            for group in groups
        ]
        state = reference_step(state, divided, grads, [1.0] * 3, [1.0] * 3)
        optimizer.step()
        for name, param in model.named_parameters():
            torch.testing.assert_close(
                param.detach(), state.parameters[name], rtol=1e-12, atol=1e-12
            )


@pytest.mark.parametrize("task", ["etth1", "multi30k", "cifar10", "imdb"])
def test_everything_as_run(task: str) -> None:
    """All of it together, on an encoder of two layers: every head but beta's has a gradient."""
    modulator, meta = paper_preset(task, as_run=True).values()
    model = small_model()
    optimizer = MetaAdamW(
        small_groups(model), modulator=dataclasses.replace(modulator, layers=2), learning=meta
    )
    case = Problem()
    before = optimizer.modulator.output_weight.detach().clone()
    bias = optimizer.modulator.output_bias.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        case.loss_fn(model, small_batch()).backward()
        optimizer.step()
        assert optimizer.update_attention(model, case.loss_fn, **case.batches).applied
    moved = optimizer.modulator.output_bias != bias
    assert moved.tolist() == [True, False, True, True]
    assert torch.isfinite(optimizer.modulator.output_weight).all()
    assert (optimizer.modulator.output_weight[0] != before[0]).any()


def test_features_of_basic_plus_as_run() -> None:
    """Item 5: the enhanced columns under another name, without the group embedding."""
    case = Problem({"features": "basic_plus_as_run"})
    assert case.optimizer.feature_names == Problem({"features": "enhanced"}).optimizer.feature_names
    named = list(case.model.named_parameters())
    state = state_from_optimizer(case.optimizer, named)
    expected = reference_features(
        "enhanced",
        groups_from_optimizer(case.optimizer, named),
        dict(named),
        {name: p.grad for name, p in named},
        state.exp_avg,
        state.exp_avg_sq,
        step=4,
        total_steps=20,
    )
    torch.testing.assert_close(case.optimizer.group_features(), expected, rtol=1e-12, atol=1e-12)
    assert "group_embedding" not in case.optimizer.modulator.state_dict()
    assert isinstance(case.config, Attention)
