"""Checks of the reference alone: steps, features and modulator (Eqs. 1-9)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from .adamw import adamw_step, metaadamw_step, reference_step
from .features import FEATURE_SETS, feature_table, group_features, log_rms
from .modulator import (
    library_weights,
    load_library_weights,
    modulator_from_library,
    regulariser,
)
from .setting import FEATURE_COUNTS, Setting, assert_close, random_modulator
from .state import (
    ReferenceGroup,
    ReferenceState,
    groups_from_optimizer,
    state_from_optimizer,
)


def test_neutral_modulation_is_adamw() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).double()
    first, *others = model.named_parameters()
    optimizer = torch.optim.AdamW(
        [
            {"params": [first[1]], "lr": 0.1, "weight_decay": 0.5},
            {"params": [parameter for _, parameter in others], "betas": (0.7, 0.9), "eps": 1e-3},
        ]
    )
    groups = groups_from_optimizer(optimizer, model.named_parameters())
    state = state_from_optimizer(optimizer, model.named_parameters())
    for step in range(20):
        gradients: dict[str, Tensor | None] = {}
        for index, (name, parameter) in enumerate(model.named_parameters()):
            # Some gradients are missing: those parameters must not move and must not count.
            missing = (step + index) % 5 == 0
            parameter.grad = None if missing else torch.randn_like(parameter)
            gradients[name] = parameter.grad
        optimizer.step()
        state = reference_step(state, groups, gradients, [1.0, 1.0], [1.0, 1.0])
    stored = state_from_optimizer(optimizer, model.named_parameters())
    assert state.steps == stored.steps
    for name in state.parameters:
        assert_close(state.parameters[name], stored.parameters[name])
        assert_close(state.exp_avg[name], stored.exp_avg[name])
        assert_close(state.exp_avg_sq[name], stored.exp_avg_sq[name])


def test_step_by_hand() -> None:
    def number(value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64)

    options = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 0.01, "weight_decay": 0.5}
    options |= {"alpha": 2.0, "beta": 3.0}
    theta, g, m, v = number(4.0), number(2.0), number(1.0), number(0.5)
    m_hat = (0.9 * 1.0 + 0.1 * 2.0) / (1 - 0.9**5)
    v_hat = (0.99 * 0.5 + 0.01 * 4.0) / (1 - 0.99**5)
    usual = adamw_step(theta, g, m, v, 5, **options)  # type: ignore[arg-type]
    printed = adamw_step(theta, g, m, v, 5, eps_inside_sqrt=True, **options)  # type: ignore[arg-type]
    direction = m_hat / (math.sqrt(v_hat) + 0.01) + 3.0 * 0.5 * 4.0
    assert usual.direction.item() == pytest.approx(direction, rel=1e-14)
    assert usual.theta.item() == pytest.approx(4.0 - 0.1 * 2.0 * direction, rel=1e-14)
    direction = m_hat / math.sqrt(v_hat + 0.01) + 3.0 * 0.5 * 4.0
    assert printed.theta.item() == pytest.approx(4.0 - 0.1 * 2.0 * direction, rel=1e-14)


@pytest.mark.parametrize("eps_inside_sqrt", [False, True])
def test_step_is_differentiable_in_alpha_and_beta(eps_inside_sqrt: bool) -> None:
    theta, g, m = (torch.randn(4, dtype=torch.float64) for _ in range(3))
    v = torch.rand(4, dtype=torch.float64)

    def stepped(alpha: Tensor, beta: Tensor) -> Tensor:
        return adamw_step(
            theta,
            g,
            m,
            v,
            3,
            lr=0.1,
            betas=(0.9, 0.99),
            eps=1e-8,
            weight_decay=0.2,
            alpha=alpha,
            beta=beta,
            eps_inside_sqrt=eps_inside_sqrt,
        ).theta

    factors = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.8, 1.3)]
    assert torch.autograd.gradcheck(stepped, factors)


def test_zero_gradient_with_zero_moments_has_finite_derivatives() -> None:
    zero = torch.zeros(3, dtype=torch.float64)
    alpha = torch.ones((), dtype=torch.float64, requires_grad=True)
    options = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.2}
    step = adamw_step(zero + 1.0, zero, zero, zero, 1, alpha=alpha, **options)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(step.theta.sum(), alpha)
    assert gradient.item() == pytest.approx(-0.1 * 3 * 0.2)


def test_whole_step_uses_moments_before_the_gradient() -> None:
    setting = Setting()
    gradients = {n: torch.randn_like(p) for n, p in setting.state.parameters.items()}
    after, modulation, features = metaadamw_step(
        setting.state, setting.groups, gradients, setting.modulator, step=4, total_steps=10
    )
    expected_norm = torch.linalg.vector_norm(setting.state.exp_avg["0.weight"])
    assert_close(features[0, 1], expected_norm)
    assert features[:, 5].tolist() == [0.4] * 3
    by_hand = reference_step(
        setting.state, setting.groups, gradients, modulation.alpha, modulation.beta
    )
    assert_close(after.parameters["2.bias"], by_hand.parameters["2.bias"])
    assert set(after.steps.values()) == {4}


def test_state_without_moments() -> None:
    state = ReferenceState(parameters={"p": torch.ones(2)}, exp_avg={}, exp_avg_sq={}, steps={})
    m, v, steps = state.moments("p")
    assert not m.any()
    assert not v.any()
    assert steps == 0


def one_group(*tensors: Tensor) -> tuple[list[ReferenceGroup], dict[str, Tensor]]:
    parameters = {f"p{index}": tensor for index, tensor in enumerate(tensors)}
    return [ReferenceGroup(names=tuple(parameters))], parameters


def test_features_by_hand() -> None:
    groups, parameters = one_group(torch.tensor([[3.0, 4.0]]), torch.tensor([0.0, 1.0]))
    gradients = {"p0": torch.tensor([[0.0, 2.0]]), "p1": None}
    exp_avg = {"p0": torch.tensor([[1.0, 1.0]]), "p1": torch.tensor([0.0, 6.0])}
    exp_avg_sq = {"p0": torch.tensor([[0.0, 0.5]])}

    def row(feature_set: str) -> dict[str, float]:
        (result,) = feature_table(
            feature_set, groups, parameters, gradients, exp_avg, exp_avg_sq, step=1000
        )
        return result

    time_step = 2 / (1 + math.exp(-1)) - 1
    root = math.sqrt(2)
    basic = {
        "grad_norm": 1.0,
        "exp_avg_norm": (root + 6) / 2,
        "param_norm": 3.0,
        "cosine": root / 4,
    }
    assert row("basic") == pytest.approx(basic | {"exp_avg_sq_norm": 0.25, "time_step": time_step})
    assert row("basic_plus") == pytest.approx(
        basic
        | {
            "grad_norm_std": 1.0,
            "exp_avg_norm_std": (6 - root) / 2,
            "param_norm_std": 2.0,
            "cosine_std": root / 4,
            "exp_avg_sq_norm": 0.25,
            "exp_avg_sq_norm_std": 0.25,
            "time_step": time_step,
        }
    )
    assert row("enhanced") == pytest.approx(
        {
            "grad_norm": 1.0,
            "grad_norm_var": 1.0,
            "exp_avg_norm": (root + 6) / 2,
            "exp_avg_norm_var": (6 - root) ** 2 / 4,
            "grad_sparsity": 0.75,
            "exp_avg_sparsity": 0.25,
            "log_numel": math.log(4),
            "bias_ratio": 0.5,
            "depth": 0.5,
            "time_step": time_step,
        }
    )


def test_order_of_columns() -> None:
    groups, parameters = one_group(torch.ones(2))
    (row,) = feature_table("basic_plus", groups, parameters, {}, {}, {}, step=1)
    assert list(row) == [
        "grad_norm",
        "exp_avg_norm",
        "param_norm",
        "cosine",
        "grad_norm_std",
        "exp_avg_norm_std",
        "param_norm_std",
        "cosine_std",
        "exp_avg_sq_norm",
        "exp_avg_sq_norm_std",
        "time_step",
    ]


@pytest.mark.parametrize("feature_set", FEATURE_SETS)
@pytest.mark.parametrize("second_moment_norm", [False, True])
@pytest.mark.parametrize("time_step", [False, True])
def test_features_have_their_dimension_and_are_finite(
    feature_set: str, second_moment_norm: bool, time_step: bool
) -> None:
    tensors = [torch.randn(2, 3), torch.zeros(4), torch.tensor(2.0), torch.zeros(0, 3)]
    parameters = dict(zip(("weight", "bias", "scale", "empty"), tensors, strict=True))
    gradients = {"weight": torch.zeros(2, 3), "bias": torch.ones(4), "scale": None}
    partitions = [[("weight", "bias", "scale", "empty")], [("weight",), ("bias",)]]
    partitions += [[(name,) for name in parameters], [("empty",)]]
    count = FEATURE_COUNTS[feature_set] - (not time_step)
    if not second_moment_norm:
        count -= {"basic_plus": 2, "norm_basic_plus": 2, "enhanced": 0}.get(feature_set, 1)
    for names in partitions:
        features = group_features(
            feature_set,
            [ReferenceGroup(names=part) for part in names],
            parameters,
            gradients,
            {"bias": torch.full((4,), 1e-30)},
            {},
            step=1,
            second_moment_norm=second_moment_norm,
            time_step=time_step,
        )
        assert features.shape == (len(names), count)
        assert bool(features.isfinite().all())


@pytest.mark.parametrize("feature_set", ["norm_basic", "norm_basic_plus"])
def test_normalised_columns(feature_set: str) -> None:
    setting = Setting()
    gradients = {n: torch.randn_like(p) for n, p in setting.state.parameters.items()}
    features = group_features(
        feature_set,
        setting.groups,
        setting.state.parameters,
        gradients,
        setting.state.exp_avg,
        setting.state.exp_avg_sq,
        step=4,
        total_steps=8,
    )
    statistics, time_step = features[:, :-1], features[:, -1]
    assert time_step.tolist() == [0.5] * 3
    assert_close(statistics.mean(dim=0), torch.zeros_like(statistics[0]))
    assert_close(statistics.std(dim=0, unbiased=False), torch.ones_like(statistics[0]))


def test_scale_free_before_standardisation() -> None:
    """Pooled over the group's entries, clipped, and the cosine averaged over its tensors."""
    assert log_rms([3.0, 4.0], 4, (-20.0, 20.0)) == pytest.approx(math.log(2.5))
    assert log_rms([0.0], 4, (-20.0, 20.0)) == -20.0
    assert log_rms([1e30], 4, (-20.0, 20.0)) == 20.0
    assert log_rms([], 0, (-20.0, 20.0)) == -20.0
    groups, parameters = one_group(torch.ones(2), torch.ones(2))
    exp_avg = {"p0": -torch.ones(2)}
    (row,) = feature_table(
        "scale_free", groups, parameters, parameters, exp_avg, {}, step=3, total_steps=4
    )
    assert row == {
        "log_grad_rms": 0.0,
        "log_exp_avg_rms": 0.0,
        "log_param_rms": 0.0,
        "log_exp_avg_sq_rms": 0.0,
        "cosine": pytest.approx(-0.5),
        "cosine_sign": -1.0,
        "time_step": 0.75,
    }


def test_scale_free_does_not_see_scale() -> None:
    setting = Setting()
    gradients = {n: torch.randn_like(p) for n, p in setting.state.parameters.items()}

    def features(scale: float) -> Tensor:
        return group_features(
            "scale_free",
            setting.groups,
            {name: scale * value for name, value in setting.state.parameters.items()},
            {name: scale * value for name, value in gradients.items()},
            {name: scale * value for name, value in setting.state.exp_avg.items()},
            {name: scale**2 * value for name, value in setting.state.exp_avg_sq.items()},
            step=4,
        )

    assert_close(features(1.0), features(37.0), 1e-10)


def test_modulator_against_attention_written_out() -> None:
    modulator = random_modulator(5, layers=2, heads=3, feature_gating=True)
    weights = library_weights(modulator)
    features = torch.randn(4, 5, dtype=torch.float64)

    def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        return centred / (centred.pow(2).mean(dim=-1, keepdim=True) + 1e-5).sqrt() * weight + bias

    z = torch.cat([features * torch.sigmoid(weights["gate_logits"]), torch.zeros(4, 1)], dim=1)
    for i in range(2):
        w = {name: value[i] for name, value in weights.items() if value.shape[0] == 2}
        x = layer_norm(z, w["norm1_weight"], w["norm1_bias"])
        q, k, v = (x @ w["in_proj_weight"].T + w["in_proj_bias"]).split(6, dim=1)
        heads = []
        for head in (slice(0, 2), slice(2, 4), slice(4, 6)):
            scores = q[:, head] @ k[:, head].T / math.sqrt(2)
            heads.append(scores.softmax(dim=1) @ v[:, head])
        z = z + torch.cat(heads, dim=1) @ w["out_proj_weight"].T + w["out_proj_bias"]
        x = layer_norm(z, w["norm2_weight"], w["norm2_bias"])
        hidden = (x @ w["linear1_weight"].T + w["linear1_bias"]).relu()
        z = z + hidden @ w["linear2_weight"].T + w["linear2_bias"]
    raw = z @ weights["output_weight"].T + weights["output_bias"]
    modulation = modulator(features)
    assert modulator.dimension == 6
    assert_close(modulation.alpha, 1 + 1.3 * (torch.sigmoid(raw[:, 0]) - 0.5))
    assert_close(modulation.beta, 1 + 1.0 * (torch.sigmoid(raw[:, 1]) - 0.5))
    assert_close(modulation.lambda1, torch.sigmoid(raw[:, 2]))
    assert_close(modulation.lambda2, torch.sigmoid(raw[:, 3]))


def test_library_layout_round_trip() -> None:
    original = random_modulator(10, layers=3, heads=4, feature_gating=True, embedded_groups=5)
    weights = library_weights(original)
    assert weights["in_proj_weight"].shape == (3, 48, 16)
    assert weights["group_embedding"].shape == (5, 4)
    rebuilt = modulator_from_library(weights, feature_count=10, heads=4, alpha_range=1.3)
    features = torch.randn(5, 10, dtype=torch.float64)
    assert torch.equal(original(features).alpha, rebuilt(features).alpha)
    del weights["output_bias"]
    with pytest.raises(ValueError, match="must be"):
        load_library_weights(rebuilt, weights)


def test_regulariser_by_hand_and_at_zero() -> None:
    modulator = random_modulator(4, layers=2, feature_gating=True)
    weights = library_weights(modulator)
    expected = weights["output_weight"].norm() * 0.1
    for name, value in weights.items():
        if name not in ("output_weight", "output_bias", "gate_logits"):
            expected = expected + 0.1 * (value[0].norm() + value[1].norm())
    gates = weights["gate_logits"].abs().sum()
    assert_close(regulariser(modulator, 0.1), expected + 0.1 * gates)
    assert_close(regulariser(modulator, 0.1, 0.7), expected + 0.7 * gates)
    nn.init.zeros_(modulator.output.weight)
    regulariser(modulator, 0.1).backward()
    assert modulator.output.weight.grad is not None
    assert not modulator.output.weight.grad.any()
