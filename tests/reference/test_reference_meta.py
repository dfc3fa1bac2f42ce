"""Checks of the reference alone: Algorithm 2 and its online form (Eqs. 10-13)."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from .adamw import reference_step
from .features import FEATURE_SETS
from .meta import TERMS, cosine, gradients_at, loss_at, meta_update, uncertainty_weighted
from .modulator import library_weights, load_library_weights, regulariser
from .online import cosine_signal, online_gradient, raw_signal
from .setting import Setting, assert_close, mean_squared_error
from .state import ReferenceGroup


@pytest.mark.parametrize(
    ("kind", "factor"), [("regression", 0.5), ("classification", 1.0)], ids=lambda value: str(value)
)
def test_uncertainty_weighting(kind: str, factor: float) -> None:
    terms = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64, requires_grad=True)
    s = torch.tensor([0.3, -0.4, 0.0], dtype=torch.float64, requires_grad=True)
    priorities = torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64)
    total = uncertainty_weighted(terms, s, priorities.tolist(), kind=kind)
    assert_close(total, factor * ((-s).exp() * terms + priorities * s).sum())
    of_terms, of_s = torch.autograd.grad(total, [terms, s])
    assert_close(of_terms, factor * (-s).exp())
    assert_close(of_s, factor * (priorities - (-s).exp() * terms))


def test_log_variances_and_the_combined_value() -> None:
    setting = Setting()
    raw = setting.raw_log_variances.tolist()
    for bound, expected in ((None, raw), (0.5, [0.5 * math.tanh(value / 0.5) for value in raw])):
        update = setting.update(log_variance_bound=bound, priorities=(5.0, 2.0, 1.0))
        assert update.log_variances.tolist() == pytest.approx(expected)
        value = 0.0
        for term, s, priority in zip(TERMS, expected, (5.0, 2.0, 1.0), strict=True):
            value += getattr(update, term).item() / (2 * math.exp(s)) + priority * s / 2
        assert update.value.item() == pytest.approx(value)
        assert_close(update.total, update.value + regulariser(setting.modulator, 1e-2).detach())


def test_cosine_is_zero_for_a_zero_vector() -> None:
    vector = torch.randn(3, dtype=torch.float64)
    assert cosine(vector, vector).item() == pytest.approx(1.0)
    assert cosine(vector, torch.zeros(3, dtype=torch.float64)).item() == 0.0


def test_terms_by_hand() -> None:
    setting = Setting()
    update = setting.update(weighting="fixed", fixed_weights=(2.0, 3.0, 4.0), weight_decay=0.0)

    def loss(parameters: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Setting]:
        other = copy.deepcopy(setting)
        other.model.load_state_dict(parameters)
        other.model.zero_grad()
        value = mean_squared_error(other.model, batch)
        value.backward()
        return value.detach(), other

    theta = dict(setting.state.parameters)
    at_b1, before = loss(theta, setting.batch1)
    _, after = loss(update.theta_prime, setting.batch2)
    alignment = 0.0
    for index, group in enumerate(setting.groups):
        g, g_prime = (
            torch.cat([at.model.get_parameter(name).grad.flatten() for name in group.names])  # type: ignore[union-attr]
            for at in (before, after)
        )
        similarity = g @ g_prime / (g.norm() * g_prime.norm())
        alignment += update.modulation.lambda1[index] * g_prime.norm() ** 2 / 3
        alignment -= update.modulation.lambda2[index] * similarity / 3
    decrease = loss(update.theta_prime, setting.val_batch)[0] - loss(theta, setting.val_batch)[0]
    gap = (at_b1 - loss(theta, setting.val_batch)[0]).abs()
    for actual, expected in zip(
        (update.gradient_alignment, update.loss_decrease, update.generalization_gap),
        (alignment, decrease, gap),
        strict=True,
    ):
        assert actual is not None
        assert_close(actual, torch.as_tensor(expected))
    assert_close(update.total, 2 * alignment + 3 * decrease + 4 * gap)
    assert_close(update.features[:, 0][0], before.model.get_parameter("0.weight").grad.norm())  # type: ignore[union-attr]
    stepped = reference_step(
        setting.state, setting.groups, update.g, update.modulation.alpha, update.modulation.beta
    )
    for name, value in stepped.parameters.items():
        assert_close(update.theta_prime[name], value)


@pytest.mark.parametrize("eps_inside_sqrt", [False, True])
def test_closed_form_of_the_lookahead(eps_inside_sqrt: bool) -> None:
    setting = Setting()
    update = setting.update(
        objective="loss_decrease", weight_decay=0.0, eps_inside_sqrt=eps_inside_sqrt
    )
    theta_prime = {name: p.requires_grad_() for name, p in update.theta_prime.items()}
    gradients = gradients_at(
        setting.model, mean_squared_error, theta_prime, setting.val_batch, create_graph=False
    )
    closed_form = raw_signal(
        setting.groups,
        setting.state.parameters,
        update.directions,
        gradients,
        update.modulation.alpha,
    )
    assert_close(update.alpha_gradient, closed_form.alpha)
    assert_close(update.beta_gradient, closed_form.beta)
    assert bool(update.alpha_gradient.all())
    assert bool(update.beta_gradient.all())


def check_against_central_differences(setting: Setting, **options: object) -> None:
    """Compare the gradient with differences along one random direction per weight tensor."""
    update = setting.update(**options)
    features = update.features
    width = 1e-5
    moved = copy.copy(setting)
    for name, gradient in update.gradients.items():
        direction = torch.randn_like(gradient)
        values = []
        for sign in (1, -1):
            weights = library_weights(setting.modulator)
            weights[name] = weights[name] + sign * width * direction
            moved.modulator = load_library_weights(copy.deepcopy(setting.modulator), weights)
            values.append(moved.update(features=features, **options).total)
        difference = (values[0] - values[1]) / (2 * width)
        torch.testing.assert_close(
            (gradient * direction).sum(), difference, rtol=1e-5, atol=1e-8, msg=name
        )
    raw = setting.raw_log_variances
    for index in range(3):
        shift = width * torch.eye(3, dtype=torch.float64)[index]
        high, low = (
            setting.update(features=features, **(options | {"raw_log_variances": raw + by})).total
            for by in (shift, -shift)
        )
        torch.testing.assert_close(
            update.log_variance_gradient[index], (high - low) / (2 * width), rtol=1e-6, atol=1e-8
        )


@pytest.mark.parametrize("objective", [*TERMS, "combined"])
def test_meta_gradient_against_central_differences(objective: str) -> None:
    gap_at = "theta_prime" if objective == "generalization_gap" else "theta"
    check_against_central_differences(Setting(), objective=objective, gap_at=gap_at)


@pytest.mark.parametrize(
    "options",
    [
        {"weighting": "fixed"},
        {"log_variance_bound": None, "priorities": (5.0, 2.0, 1.0)},
        {"kind": "classification", "gap_at": "theta_prime", "gate_sparsity": 0.3},
        {"eps_inside_sqrt": True},
    ],
    ids=lambda options: "-".join(options),
)
def test_meta_gradient_of_other_options(options: dict[str, object]) -> None:
    check_against_central_differences(Setting(), **options)


@pytest.mark.parametrize("feature_set", FEATURE_SETS)
def test_meta_gradient_of_each_feature_set(feature_set: str) -> None:
    setting = Setting(feature_set)
    check_against_central_differences(setting)
    assert all(bool(gradient.any()) for gradient in setting.update().gradients.values())


def test_gap_at_theta_trains_nothing() -> None:
    update = Setting().update(objective="generalization_gap", weight_decay=0.0)
    assert not any(bool(gradient.any()) for gradient in update.gradients.values())
    assert not update.log_variance_gradient.any()


def test_parameter_without_gradient_on_the_first_batch() -> None:
    """It is not moved, but its gradient on the second batch counts in Eq. 10."""
    setting = Setting()
    second = setting.batch2

    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = mean_squared_error(model[:2], (batch[0], batch[1].new_zeros(7, 5)))  # type: ignore[index]
        return loss + mean_squared_error(model, batch) if batch is second else loss

    update = meta_update(
        setting.model,
        loss_fn,
        setting.groups,
        setting.state,
        setting.modulator,
        batch1=setting.batch1,
        batch2=second,
        objective="gradient_alignment",
    )
    assert update.g["2.weight"] is None
    assert torch.equal(update.theta_prime["2.weight"], setting.state.parameters["2.weight"])
    assert not torch.equal(update.theta_prime["0.weight"], setting.state.parameters["0.weight"])
    assert update.alpha_gradient[1] == 0.0
    assert update.alpha_gradient[0] != 0.0
    theta_prime = {name: p.requires_grad_() for name, p in update.theta_prime.items()}
    g_prime = gradients_at(setting.model, loss_fn, theta_prime, second, create_graph=False)
    assert g_prime["2.weight"] is not None
    assert bool(g_prime["2.weight"].any())


def test_model_is_left_alone() -> None:
    setting = Setting()
    setting.model = nn.Sequential(
        nn.Linear(3, 5), nn.BatchNorm1d(5, affine=False), nn.Linear(5, 2)
    ).double()
    before = copy.deepcopy(setting.model.state_dict())
    setting.update()
    for name, value in setting.model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in setting.model.parameters())


def test_losses_by_name_follow_tied_weights() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)).double()
    model[1].weight = model[0].weight
    inputs = torch.randn(3, 2, dtype=torch.float64)
    batch = (inputs, torch.zeros(3, 2, dtype=torch.float64))
    parameters = {name: 2.0 * p.detach() for name, p in model.named_parameters()}
    assert list(parameters) == ["0.weight"]
    weight = parameters["0.weight"]
    expected = (inputs @ weight.T @ weight.T).pow(2).mean()
    assert_close(loss_at(model, mean_squared_error, parameters, batch), expected)


def test_repeated_meta_updates_lower_the_objective() -> None:
    setting = Setting(gating=False)
    totals = []
    for _ in range(15):
        update = setting.update(objective="loss_decrease", weight_decay=0.0)
        totals.append(update.total.item())
        weights = library_weights(setting.modulator)
        stepped = {name: weights[name] - 0.5 * update.gradients[name] for name in weights}
        load_library_weights(setting.modulator, stepped)
    assert all(after < before for before, after in itertools.pairwise(totals))


def test_online_signal_is_the_gradient_through_one_step() -> None:
    """The raw signal through Phi is the exact gradient of the loss at the moved point."""
    setting = Setting(gating=False)
    update = setting.update(objective="loss_decrease", weight_decay=0.0)
    theta_prime = {name: p.requires_grad_() for name, p in update.theta_prime.items()}
    next_gradients = gradients_at(
        setting.model, mean_squared_error, theta_prime, setting.val_batch, create_graph=False
    )
    raw = raw_signal(
        setting.groups,
        setting.state.parameters,
        update.directions,
        next_gradients,
        update.modulation.alpha,
    )
    for name, gradient in online_gradient(setting.modulator, update.features, raw).items():
        assert_close(gradient, update.gradients[name])
    scale_free = cosine_signal(
        setting.groups, setting.state.parameters, update.directions, next_gradients
    )
    assert torch.equal(scale_free.alpha.sign(), raw.alpha.sign())
    assert torch.equal(scale_free.beta.sign(), raw.beta.sign())
    assert bool((scale_free.alpha.abs() <= 1).all() and (scale_free.beta.abs() <= 1).all())


def test_online_signal_of_a_parameter_that_did_not_move() -> None:
    groups = [ReferenceGroup(names=("a", "b")), ReferenceGroup(names=("c",))]
    theta = {name: torch.ones(2, dtype=torch.float64) for name in "abc"}
    directions = {"a": theta["a"]}
    signal = cosine_signal(groups, theta, directions, {"a": theta["a"], "b": theta["b"]})
    assert_close(signal.alpha, torch.tensor([-math.sqrt(0.5), 0.0], dtype=torch.float64))
    assert_close(signal.beta, signal.alpha)
