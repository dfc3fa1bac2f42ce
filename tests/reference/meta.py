"""Sec. 3.5, Eqs. 10-13, and Algorithm 2: the meta-gradient, wholly by autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .adamw import step_tensors
from .features import group_features
from .modulator import (
    ReferenceModulation,
    ReferenceModulator,
    modulator_gradient,
    regulariser,
)
from .state import ReferenceGroup, ReferenceState

LossFunction = Callable[[nn.Module, Any], Tensor]
TERMS = ("gradient_alignment", "loss_decrease", "generalization_gap")


class LossModule(nn.Module):
    """The user's loss as a module, so that functional_call can exchange the model's tensors."""

    def __init__(self, model: nn.Module, loss_fn: LossFunction) -> None:
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn

    def forward(self, batch: Any) -> Tensor:
        """L(theta; batch) at whatever parameters the model holds."""
        return self.loss_fn(self.model, batch)


def loss_at(
    model: nn.Module, loss_fn: LossFunction, parameters: Mapping[str, Tensor], batch: Any
) -> Tensor:
    """L(parameters; batch) without touching the model: its buffers are replaced by copies.

    The loss must be deterministic; one that draws random numbers has to seed itself per batch.
    """
    tensors = {f"model.{name}": tensor for name, tensor in parameters.items()}
    tensors |= {f"model.{name}": buffer.clone() for name, buffer in model.named_buffers()}
    return torch.func.functional_call(LossModule(model, loss_fn), tensors, (batch,))


def gradients_at(
    model: nn.Module,
    loss_fn: LossFunction,
    parameters: Mapping[str, Tensor],
    batch: Any,
    *,
    create_graph: bool,
) -> dict[str, Tensor | None]:
    """The gradient of L(.; batch) by name; None where the loss does not depend on a parameter."""
    loss = loss_at(model, loss_fn, parameters, batch)
    gradients = torch.autograd.grad(
        loss, list(parameters.values()), create_graph=create_graph, allow_unused=True
    )
    return dict(zip(parameters, gradients, strict=True))


def group_vector(
    group: ReferenceGroup, tensors: Mapping[str, Tensor | None], like: Mapping[str, Tensor]
) -> Tensor:
    """The tensors of one group as a single vector; a missing tensor is zero."""
    parts = []
    for name in group.names:
        tensor = tensors.get(name)
        parts.append((torch.zeros_like(like[name]) if tensor is None else tensor).flatten())
    return torch.cat(parts)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """cos(a, b) = <a, b> / (||a|| ||b||), and the constant 0 where either vector is 0."""
    if not bool(a.any()) or not bool(b.any()):
        return torch.zeros((), dtype=a.dtype)
    return (a @ b) / (torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b))


def gradient_alignment(
    modulation: ReferenceModulation, g: Sequence[Tensor], g_prime: Sequence[Tensor]
) -> Tensor:
    """Eq. 10: L_grad = 1/G sum_g (lambda_1g ||g'_g||^2 - lambda_2g cos(g_g, g'_g))."""
    terms = [
        modulation.lambda1[index] * (after @ after)
        - modulation.lambda2[index] * cosine(before, after)
        for index, (before, after) in enumerate(zip(g, g_prime, strict=True))
    ]
    return sum(terms, start=torch.zeros(())) / len(terms)


def loss_decrease(validation_loss_after: Tensor, validation_loss_before: Tensor) -> Tensor:
    """Eq. 11: L_loss = L_val(theta') - L_val(theta)."""
    return validation_loss_after - validation_loss_before


def generalization_gap(training_loss: Tensor, validation_loss: Tensor) -> Tensor:
    """Eq. 12: L_gap = |L_train(., B1) - L_val(.)|, printed at theta, optionally at theta'."""
    return (training_loss - validation_loss).abs()


def log_variances(raw: Tensor, bound: float | None) -> Tensor:
    """The s_i = log sigma_i^2 of Eq. 13: raw as published, or bounded s = c tanh(raw / c)."""
    return raw if bound is None else bound * torch.tanh(raw / bound)


def uncertainty_weighted(
    terms: Iterable[Tensor], s: Tensor, priorities: Sequence[float], *, kind: str = "regression"
) -> Tensor:
    """Eq. 13: sum_i exp(-s_i)/2 L_i + p_i s_i/2, or for classification exp(-s_i) L_i + p_i s_i."""
    if kind not in ("regression", "classification"):
        raise ValueError(f"kind={kind!r} must be 'regression' or 'classification'")
    factor = 0.5 if kind == "regression" else 1.0
    total = torch.zeros((), dtype=s.dtype)
    for term, s_i, priority in zip(terms, s, priorities, strict=True):
        total = total + factor * torch.exp(-s_i) * term + factor * priority * s_i
    return total


def fixed_weighted(terms: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The combined objective with fixed weights: sum_i w_i L_i."""
    return sum(
        (weight * term for weight, term in zip(weights, terms, strict=True)), start=torch.zeros(())
    )


@dataclass(frozen=True, kw_only=True)
class ReferenceMetaUpdate:
    """Every value of Algorithm 2, and the gradients it ends with.

    Attributes:
        total: ``value + penalty``, the number that is differentiated.
        value: The chosen objective without the regulariser.
        penalty: The regulariser of the modulator.
        gradient_alignment: Eq. 10, or None where the objective does not need it.
        loss_decrease: Eq. 11, or None where the objective does not need it.
        generalization_gap: Eq. 12, or None where the objective does not need it.
        features: F [G, F], a constant.
        modulation: alpha, beta, lambda1 and lambda2, each [G], detached.
        log_variances: s [3], after the bound, detached.
        gradients: d total / d phi for every modulator weight, in the library's layout.
        log_variance_gradient: d total / d raw [3].
        alpha_gradient: d total / d alpha [G], for comparison with the closed form.
        beta_gradient: d total / d beta [G].
        g: The gradients on B1 by name.
        theta_prime: theta' by name, detached.
        directions: d_t by name, of the parameters that move.
    """

    total: Tensor
    value: Tensor
    penalty: Tensor
    gradient_alignment: Tensor | None
    loss_decrease: Tensor | None
    generalization_gap: Tensor | None
    features: Tensor
    modulation: ReferenceModulation
    log_variances: Tensor
    gradients: dict[str, Tensor]
    log_variance_gradient: Tensor
    alpha_gradient: Tensor
    beta_gradient: Tensor
    g: dict[str, Tensor | None]
    theta_prime: dict[str, Tensor]
    directions: dict[str, Tensor]


def meta_update(
    model: nn.Module,
    loss_fn: LossFunction,
    groups: Sequence[ReferenceGroup],
    state: ReferenceState,
    modulator: ReferenceModulator,
    *,
    batch1: Any,
    batch2: Any = None,
    val_batch: Any = None,
    features: Tensor | None = None,
    step: int | None = None,
    feature_set: str = "basic",
    total_steps: int | None = None,
    second_moment_norm: bool = True,
    time_step: bool = True,
    objective: str = "combined",
    weighting: str = "uncertainty",
    kind: str = "regression",
    priorities: Sequence[float] = (1.0, 1.0, 1.0),
    fixed_weights: Sequence[float] = (1.0, 0.3, 0.3),
    raw_log_variances: Tensor | None = None,
    log_variance_bound: float | None = 3.0,
    gap_at: str = "theta",
    weight_decay: float = 1e-4,
    gate_sparsity: float | None = None,
    eps_inside_sqrt: bool = False,
) -> ReferenceMetaUpdate:
    """Algorithm 2, lines 2-31: nothing is updated and the model is left as it is.

    Args:
        model: The model; only its structure, buffers and ungrouped parameters are used.
        loss_fn: ``loss_fn(model, batch) -> scalar``, deterministic for a given batch.
        groups: The groups, by the names of ``model.named_parameters()``.
        state: theta, m, v and step counts by name.
        modulator: Phi.
        batch1: B1.
        batch2: B2, where the objective has Eq. 10.
        val_batch: B_val, where the objective has Eq. 11 or 12.
        features: F, if given; otherwise it is computed from the gradient on B1.
        step: The step about to be taken, for the time step feature; by default one more than the
            largest step count.
        feature_set: One of ``FEATURE_SETS``, where features are computed.
        total_steps: The length of the training, if known.
        second_moment_norm: Whether the norm of v is a feature.
        time_step: Whether the time step is a feature.
        objective: ``"combined"`` or one of ``TERMS``.
        weighting: ``"uncertainty"`` or ``"fixed"``.
        kind: ``"regression"`` or ``"classification"``.
        priorities: The p_i of Eq. 13.
        fixed_weights: The weights of the terms where weighting is fixed.
        raw_log_variances: raw [3]; zeros by default.
        log_variance_bound: c of s = c tanh(raw / c), or None for the published form.
        gap_at: ``"theta"`` (Eq. 12 as printed) or ``"theta_prime"``.
        weight_decay: The coefficient of the regulariser.
        gate_sparsity: The coefficient of the gate logits; by default ``weight_decay``.
        eps_inside_sqrt: Whether Eq. 4 is used as printed.
    """
    if objective not in ("combined", *TERMS):
        raise ValueError(f"objective={objective!r} must be 'combined' or one of {TERMS}")
    needed = TERMS if objective == "combined" else (objective,)

    def loss(parameters: Mapping[str, Tensor], batch: Any) -> Tensor:
        return loss_at(model, loss_fn, parameters, batch)

    # Step 2: the gradient g on B1 at theta.
    theta = {name: state.parameters[name].detach() for group in groups for name in group.names}
    theta = {name: tensor.clone().requires_grad_() for name, tensor in theta.items()}
    g = gradients_at(model, loss_fn, theta, batch1, create_graph=False)

    # Step 3: the features, which are constants, and the modulation.
    if features is None:
        features = group_features(
            feature_set,
            groups,
            theta,
            g,
            state.exp_avg,
            state.exp_avg_sq,
            step=1 + max(state.steps.values(), default=0) if step is None else step,
            total_steps=total_steps,
            second_moment_norm=second_moment_norm,
            time_step=time_step,
            dtype=modulator.output.weight.dtype,
        )
    modulation = modulator(features.detach())

    # Step 4: theta' after one step, with its graph through alpha and beta. A parameter without a
    # gradient on B1 stays where it is, but its gradient on B2 still counts in Eq. 10.
    stepped = step_tensors(
        state, groups, g, modulation.alpha, modulation.beta, eps_inside_sqrt=eps_inside_sqrt
    )
    theta_prime = {name: stepped[name].theta if name in stepped else theta[name] for name in theta}

    # Steps 5 and 6: the terms.
    alignment = decrease = gap = None
    if "gradient_alignment" in needed:
        g_prime = gradients_at(model, loss_fn, theta_prime, batch2, create_graph=True)
        alignment = gradient_alignment(
            modulation,
            [group_vector(group, g, theta) for group in groups],
            [group_vector(group, g_prime, theta) for group in groups],
        )
    if "loss_decrease" in needed:
        before = loss(theta, val_batch).detach()
        decrease = loss_decrease(loss(theta_prime, val_batch), before)
    if "generalization_gap" in needed:
        at = theta_prime if gap_at == "theta_prime" else theta
        gap = generalization_gap(loss(at, batch1), loss(at, val_batch))
    terms = [term for term in (alignment, decrease, gap) if term is not None]

    if raw_log_variances is None:
        raw_log_variances = torch.zeros(len(TERMS), dtype=features.dtype)
    raw = raw_log_variances.detach().clone().requires_grad_()
    s = log_variances(raw, log_variance_bound)
    if objective != "combined":
        value = terms[0]
    elif weighting == "uncertainty":
        value = uncertainty_weighted(terms, s, priorities, kind=kind)
    else:
        value = fixed_weighted(terms, fixed_weights)
    penalty = regulariser(modulator, weight_decay, gate_sparsity)
    total = value + penalty

    # Step 7: backpropagate through Phi.
    raw_gradient, alpha_gradient, beta_gradient = torch.autograd.grad(
        total,
        [raw, modulation.alpha, modulation.beta],
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    gradients = modulator_gradient(total, modulator)

    def detached(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach()

    return ReferenceMetaUpdate(
        total=total.detach(),
        value=value.detach(),
        penalty=penalty.detach(),
        gradient_alignment=detached(alignment),
        loss_decrease=detached(decrease),
        generalization_gap=detached(gap),
        features=features.detach(),
        modulation=ReferenceModulation(*(part.detach() for part in modulation)),
        log_variances=s.detach(),
        gradients=gradients,
        log_variance_gradient=raw_gradient,
        alpha_gradient=alpha_gradient,
        beta_gradient=beta_gradient,
        g=g,
        theta_prime={name: tensor.detach() for name, tensor in theta_prime.items()},
        directions={name: tensor.direction.detach() for name, tensor in stepped.items()},
    )


def gradient_descent(
    weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], lr: float
) -> dict[str, Tensor]:
    """Algorithm 2, lines 32-34: phi <- phi - eta_meta grad_phi L_meta, for every weight."""
    return {name: weight - lr * gradients[name] for name, weight in weights.items()}
