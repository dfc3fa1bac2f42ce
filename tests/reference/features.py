"""Sec. 3.3: the six feature sets, tensor by tensor with Python loops and numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .state import ReferenceGroup

FEATURE_SETS = ("basic", "basic_plus", "enhanced", "norm_basic", "norm_basic_plus", "scale_free")


@dataclass(frozen=True)
class TensorStatistics:
    """Every number that any feature set needs to know about one tensor of a group."""

    numel: int
    is_bias: bool
    grad_norm: float
    exp_avg_norm: float
    exp_avg_sq_norm: float
    param_norm: float
    cosine: float
    zero_gradient_entries: int
    zero_exp_avg_entries: int


def tensor_statistics(
    name: str,
    parameter: Tensor,
    gradient: Tensor | None,
    exp_avg: Tensor | None,
    exp_avg_sq: Tensor | None,
) -> TensorStatistics:
    """Measure one tensor; a missing gradient or moment counts as zero."""
    theta = parameter.detach().to(torch.float64)
    g = torch.zeros_like(theta) if gradient is None else gradient.detach().to(torch.float64)
    m = torch.zeros_like(theta) if exp_avg is None else exp_avg.detach().to(torch.float64)
    v = torch.zeros_like(theta) if exp_avg_sq is None else exp_avg_sq.detach().to(torch.float64)
    grad_norm = (g * g).sum().sqrt().item()
    exp_avg_norm = (m * m).sum().sqrt().item()
    if grad_norm == 0.0 or exp_avg_norm == 0.0:
        cosine = 0.0
    else:
        cosine = ((g / grad_norm) * (m / exp_avg_norm)).sum().item()
    return TensorStatistics(
        numel=theta.numel(),
        is_bias=theta.dim() == 1 or name.endswith("bias"),
        grad_norm=grad_norm,
        exp_avg_norm=exp_avg_norm,
        exp_avg_sq_norm=(v * v).sum().sqrt().item(),
        param_norm=(theta * theta).sum().sqrt().item(),
        cosine=cosine,
        zero_gradient_entries=int((g == 0).sum()),
        zero_exp_avg_entries=int((m == 0).sum()),
    )


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def population_variance(values: Sequence[float]) -> float:
    """The mean squared distance from the mean (divided by n, so 0 for a single value)."""
    centre = mean(values)
    return mean([(value - centre) ** 2 for value in values])


def population_std(values: Sequence[float]) -> float:
    """The square root of the population variance."""
    return math.sqrt(population_variance(values))


def sign(value: float) -> float:
    """-1, 0 or 1."""
    return float((value > 0) - (value < 0))


def time_step_feature(step: int, total_steps: int | None) -> float:
    """The share of training that is done: t / T, or 2 sigmoid(t / 1000) - 1 where T is unknown."""
    if total_steps is None:
        return 2.0 / (1.0 + math.exp(-step / 1000.0)) - 1.0
    return step / total_steps


def basic_row(tensors: Sequence[TensorStatistics], second_moment_norm: bool) -> dict[str, float]:
    """Sec. 3.3 "Basic": the means of four statistics, optionally of the second-moment norm."""
    row = {
        "grad_norm": mean([tensor.grad_norm for tensor in tensors]),
        "exp_avg_norm": mean([tensor.exp_avg_norm for tensor in tensors]),
        "param_norm": mean([tensor.param_norm for tensor in tensors]),
        "cosine": mean([tensor.cosine for tensor in tensors]),
    }
    if second_moment_norm:
        row["exp_avg_sq_norm"] = mean([tensor.exp_avg_sq_norm for tensor in tensors])
    return row


def basic_plus_row(
    tensors: Sequence[TensorStatistics], second_moment_norm: bool
) -> dict[str, float]:
    """Sec. 3.3 "Basic+": the means of the four statistics, then their standard deviations."""
    row = basic_row(tensors, second_moment_norm=False)
    row["grad_norm_std"] = population_std([tensor.grad_norm for tensor in tensors])
    row["exp_avg_norm_std"] = population_std([tensor.exp_avg_norm for tensor in tensors])
    row["param_norm_std"] = population_std([tensor.param_norm for tensor in tensors])
    row["cosine_std"] = population_std([tensor.cosine for tensor in tensors])
    if second_moment_norm:
        row["exp_avg_sq_norm"] = mean([tensor.exp_avg_sq_norm for tensor in tensors])
        row["exp_avg_sq_norm_std"] = population_std([tensor.exp_avg_sq_norm for tensor in tensors])
    return row


def enhanced_row(tensors: Sequence[TensorStatistics], depth: float) -> dict[str, float]:
    """Sec. 3.3 "Enhanced": nine statistics; the group embedding belongs to the modulator."""
    # A group without a single entry has no share of zeros and no logarithm: both become 0.
    numel = max(sum(tensor.numel for tensor in tensors), 1)
    return {
        "grad_norm": mean([tensor.grad_norm for tensor in tensors]),
        "grad_norm_var": population_variance([tensor.grad_norm for tensor in tensors]),
        "exp_avg_norm": mean([tensor.exp_avg_norm for tensor in tensors]),
        "exp_avg_norm_var": population_variance([tensor.exp_avg_norm for tensor in tensors]),
        "grad_sparsity": sum(tensor.zero_gradient_entries for tensor in tensors) / numel,
        "exp_avg_sparsity": sum(tensor.zero_exp_avg_entries for tensor in tensors) / numel,
        "log_numel": math.log(numel),
        "bias_ratio": mean([float(tensor.is_bias) for tensor in tensors]),
        "depth": depth,
    }


def log_rms(norms: Sequence[float], numel: int, log_bounds: tuple[float, float]) -> float:
    """The clipped logarithm of a group's root mean square entry, pooled over its tensors."""
    smallest, largest = log_bounds
    rms = math.sqrt(sum(norm**2 for norm in norms) / max(numel, 1))
    if rms == 0.0:
        return smallest
    return min(max(math.log(rms), smallest), largest)


def scale_free_row(
    tensors: Sequence[TensorStatistics], second_moment_norm: bool, log_bounds: tuple[float, float]
) -> dict[str, float]:
    """Our own set: clipped log-magnitudes, the cosine and its sign."""
    numel = sum(tensor.numel for tensor in tensors)
    row = {
        "log_grad_rms": log_rms([tensor.grad_norm for tensor in tensors], numel, log_bounds),
        "log_exp_avg_rms": log_rms([tensor.exp_avg_norm for tensor in tensors], numel, log_bounds),
        "log_param_rms": log_rms([tensor.param_norm for tensor in tensors], numel, log_bounds),
    }
    if second_moment_norm:
        row["log_exp_avg_sq_rms"] = log_rms(
            [tensor.exp_avg_sq_norm for tensor in tensors], numel, log_bounds
        )
    row["cosine"] = mean([tensor.cosine for tensor in tensors])
    row["cosine_sign"] = sign(row["cosine"])
    return row


def standardise(rows: Sequence[dict[str, float]], columns: Sequence[str]) -> list[dict[str, float]]:
    """Sec. 3.3 "normalized variants": subtract the mean over groups, divide by the deviation.

    A column without spread (and so every column of a single group) becomes 0.
    """
    result = [dict(row) for row in rows]
    for column in columns:
        values = [row[column] for row in rows]
        for row, value in zip(result, values, strict=True):
            if max(values) == min(values):
                row[column] = 0.0
            else:
                row[column] = (value - mean(values)) / population_std(values)
    return result


def feature_table(
    feature_set: str,
    groups: Sequence[ReferenceGroup],
    parameters: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor | None],
    exp_avg: Mapping[str, Tensor],
    exp_avg_sq: Mapping[str, Tensor],
    *,
    step: int,
    total_steps: int | None = None,
    second_moment_norm: bool = True,
    time_step: bool = True,
    log_bounds: tuple[float, float] = (-20.0, 20.0),
) -> list[dict[str, float]]:
    """Sec. 3.3: one dictionary per group, from column name to value, in column order.

    Args:
        feature_set: One of ``FEATURE_SETS``.
        groups: The groups, one row each.
        parameters: theta before the step, by name.
        gradients: The new gradient, by name; a missing name or None is a zero gradient.
        exp_avg: m before it sees that gradient, by name; a missing name is a zero moment.
        exp_avg_sq: v before it sees that gradient, by name; a missing name is a zero moment.
        step: The step t about to be taken (completed steps + 1).
        total_steps: The length of the training, if known.
        second_moment_norm: Whether the norm of v is a feature (never of ``"enhanced"``).
        time_step: Whether the time step is the last feature.
        log_bounds: Where ``"scale_free"`` clips its logarithms.
    """
    rows = []
    for group in groups:
        tensors = [
            tensor_statistics(
                name, parameters[name], gradients.get(name), exp_avg.get(name), exp_avg_sq.get(name)
            )
            for name in group.names
        ]
        if feature_set in ("basic", "norm_basic"):
            rows.append(basic_row(tensors, second_moment_norm))
        elif feature_set in ("basic_plus", "norm_basic_plus"):
            rows.append(basic_plus_row(tensors, second_moment_norm))
        elif feature_set == "enhanced":
            rows.append(enhanced_row(tensors, group.depth))
        elif feature_set == "scale_free":
            rows.append(scale_free_row(tensors, second_moment_norm, log_bounds))
        else:
            raise ValueError(f"feature_set={feature_set!r} must be one of {FEATURE_SETS}")
    if feature_set in ("norm_basic", "norm_basic_plus"):
        rows = standardise(rows, columns=list(rows[0]))
    if feature_set == "scale_free":
        rows = standardise(rows, columns=[name for name in rows[0] if name.startswith("log_")])
    if time_step:
        for row in rows:
            row["time_step"] = time_step_feature(step, total_steps)
    return rows


def group_features(
    feature_set: str,
    groups: Sequence[ReferenceGroup],
    parameters: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor | None],
    exp_avg: Mapping[str, Tensor],
    exp_avg_sq: Mapping[str, Tensor],
    *,
    step: int,
    total_steps: int | None = None,
    second_moment_norm: bool = True,
    time_step: bool = True,
    log_bounds: tuple[float, float] = (-20.0, 20.0),
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Sec. 3.4: the feature matrix F in R^{G x D}; the arguments are those of feature_table."""
    rows = feature_table(
        feature_set,
        groups,
        parameters,
        gradients,
        exp_avg,
        exp_avg_sq,
        step=step,
        total_steps=total_steps,
        second_moment_norm=second_moment_norm,
        time_step=time_step,
        log_bounds=log_bounds,
    )
    return torch.tensor([list(row.values()) for row in rows], dtype=dtype)
