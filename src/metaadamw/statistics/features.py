r"""Sec. 3.3: statistics of the groups as a feature matrix F, shape [G, F].

``FEATURE_TABLES`` declares every feature set: the columns, their order, formula, and whether they
are standardised across groups. The length of a (filtered) table *is* the feature dimension. The
statistics are taken with the new gradient and with the moments and parameters before the step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metaadamw.state.token import Token
from metaadamw.statistics.layout import ZEROS, Column, Layout, Pair, cosines

__all__ = ["FEATURE_TABLES", "Feature", "feature_table", "group_features"]

LOG_CLIP = 20.0
"""Logarithms are clipped to ±20: e^-20 = 2e-9 stands for "nothing", as for a zero gradient."""


@dataclass(frozen=True)
class Feature:
    """One column of the feature matrix.

    Args:
        name: the column's name.
        formula: what it is, for readers.
        statistic: the statistic it is made of; a name of ``tensor_statistics``, ``Layout`` or
            "time_step".
        reduction: how the per-tensor values of a group become one: "mean", "std", "var", "share"
            (sum over number of entries), "log_rms", "sign" (of the mean), or "none" for what is per
            group already.
        standardise: whether the column is standardised across groups.
        option: the option of ``Attention`` that switches it on, if any.
    """

    name: str
    formula: str
    statistic: str
    reduction: Literal["mean", "std", "var", "share", "log_rms", "sign", "none"] = "mean"
    standardise: bool = False
    option: Literal["second_moment_norm", "time_step"] | None = None

    def standardised(self) -> Feature:
        """The same column, standardised across groups unless it is the time step."""
        if self.statistic == "time_step":
            return self
        return Feature(self.name, self.formula, self.statistic, self.reduction, True, self.option)


_MEANS = (
    Feature("grad_norm", "mean ‖g‖", "grad_norm"),
    Feature("exp_avg_norm", "mean ‖m‖", "exp_avg_norm"),
    Feature("param_norm", "mean ‖θ‖", "param_norm"),
    Feature("cosine", "mean cos(g, m)", "cosine"),
)
_STDS = (
    Feature("grad_norm_std", "std ‖g‖", "grad_norm", "std"),
    Feature("exp_avg_norm_std", "std ‖m‖", "exp_avg_norm", "std"),
    Feature("param_norm_std", "std ‖θ‖", "param_norm", "std"),
    Feature("cosine_std", "std cos(g, m)", "cosine", "std"),
)
_SECOND_MOMENT = Feature(
    "exp_avg_sq_norm", "mean ‖v‖", "exp_avg_sq_norm", "mean", False, "second_moment_norm"
)
_SECOND_MOMENT_STD = Feature(
    "exp_avg_sq_norm_std", "std ‖v‖", "exp_avg_sq_norm", "std", False, "second_moment_norm"
)
_TIME = Feature("time_step", "t / T, or 2σ(t/1000) − 1", "time_step", "none", False, "time_step")
_BASIC = (*_MEANS, _SECOND_MOMENT, _TIME)
_BASIC_PLUS = (*_MEANS, *_STDS, _SECOND_MOMENT, _SECOND_MOMENT_STD, _TIME)
_ENHANCED = (
    Feature("grad_norm", "mean ‖g‖", "grad_norm"),
    Feature("grad_norm_var", "var ‖g‖", "grad_norm", "var"),
    Feature("exp_avg_norm", "mean ‖m‖", "exp_avg_norm"),
    Feature("exp_avg_norm_var", "var ‖m‖", "exp_avg_norm", "var"),
    Feature("grad_sparsity", "share of g = 0", "grad_zeros", "share"),
    Feature("exp_avg_sparsity", "share of m = 0", "exp_avg_zeros", "share"),
    Feature("log_numel", "log number of parameters", "log_numel", "none"),
    Feature("bias_ratio", "share of biases among the tensors", "bias_ratio", "none"),
    Feature("depth", "normalised layer depth", "depth", "none"),
    _TIME,
)
_SCALE_FREE = (
    Feature("log_grad_rms", "clip log rms g", "grad_norm", "log_rms", True),
    Feature("log_exp_avg_rms", "clip log rms m", "exp_avg_norm", "log_rms", True),
    Feature("log_param_rms", "clip log rms θ", "param_norm", "log_rms", True),
    Feature(
        "log_exp_avg_sq_rms",
        "clip log rms v",
        "exp_avg_sq_norm",
        "log_rms",
        True,
        "second_moment_norm",
    ),
    Feature("cosine", "mean cos(g, m)", "cosine"),
    Feature("cosine_sign", "sign of mean cos(g, m)", "cosine", "sign"),
    _TIME,
)

FEATURE_TABLES: dict[str, tuple[Feature, ...]] = {
    "basic": _BASIC,
    "basic_plus": _BASIC_PLUS,
    "enhanced": _ENHANCED,
    "norm_basic": tuple(f.standardised() for f in _BASIC),
    "norm_basic_plus": tuple(f.standardised() for f in _BASIC_PLUS),
    "scale_free": _SCALE_FREE,
    "basic_plus_as_run": _ENHANCED,
}
"""Every feature set by name: all columns in order, those behind an option included."""

EMBEDDING_DIM = {"enhanced": 4}
"""Dimension of the learnable group embedding, for the sets that have one."""


def feature_table(
    features: str, *, second_moment_norm: bool = True, time_step: bool = True
) -> tuple[Feature, ...]:
    """The columns of a feature set, in order; their number is the feature dimension F.

    Args:
        features: a name in ``FEATURE_TABLES``.
        second_moment_norm: with the norm of ``exp_avg_sq``.
        time_step: with the time step.

    Example:
        >>> [feature.name for feature in feature_table("basic", time_step=False)]
        ['grad_norm', 'exp_avg_norm', 'param_norm', 'cosine', 'exp_avg_sq_norm']
    """
    off = {
        option
        for option, on in (("second_moment_norm", second_moment_norm), ("time_step", time_step))
        if not on
    }
    return tuple(feature for feature in FEATURE_TABLES[features] if feature.option not in off)


_PRODUCTS = {
    "grad_norm": ("grad", "grad"),
    "cosine": ("grad", "exp_avg"),
    "exp_avg_norm": ("exp_avg", "exp_avg"),
    "param_norm": ("param", "param"),
    "exp_avg_sq_norm": ("exp_avg_sq", "exp_avg_sq"),
    "grad_zeros": ("grad", ZEROS),
    "exp_avg_zeros": ("exp_avg", ZEROS),
}
"""The inner product or count behind each statistic; the cosine needs its two norms as well."""


def needed_products(table: Sequence[Feature]) -> list[Pair]:
    """The inner products and counts that the columns are made of, and nothing else."""
    needed = {f.statistic for f in table}
    if "cosine" in needed:
        needed |= {"grad_norm", "exp_avg_norm"}
    return [pair for name, pair in _PRODUCTS.items() if name in needed]


def tensor_columns(tokens: Sequence[Token]) -> dict[str, Column]:
    """All gradients, moments and parameters, tensor by tensor."""
    return {
        "grad": [g for token in tokens for g in token.grads],
        "exp_avg": [m for token in tokens for m in token.exp_avgs],
        "param": [p for token in tokens for p in token.params],
        "exp_avg_sq": [v for token in tokens for v in token.exp_avg_sqs],
    }


def tensor_statistics(products: Mapping[Pair, Tensor], needed: set[str]) -> dict[str, Tensor]:
    """The statistics of every tensor that the products give; [P]."""
    given = {name: pair for name, pair in _PRODUCTS.items() if pair in products}
    result = {name: products[pair] for name, pair in given.items() if pair[1] == ZEROS}
    names = [name for name, pair in given.items() if pair[0] == pair[1]]
    if names:
        roots = torch.stack([products[_PRODUCTS[name]] for name in names]).sqrt()
        result |= zip(names, roots.unbind(0), strict=True)
    if "cosine" in needed:
        result["cosine"] = cosines(
            products["grad", "exp_avg"], result["grad_norm"], result["exp_avg_norm"]
        )
    return result


def _reduced(
    table: Sequence[Feature], statistics: Mapping[str, Tensor], layout: Layout
) -> list[Tensor]:
    """The columns of the feature matrix, each [G]."""
    means = [f.statistic for f in table if f.reduction == "mean"]
    reduced = iter(torch.stack([statistics[name] for name in means]) @ layout.mean)
    return [
        next(reduced) if f.reduction == "mean" else _reduce(f, statistics[f.statistic], layout)
        for f in table
    ]


def _reduce(feature: Feature, values: Tensor, layout: Layout) -> Tensor:
    """Per-tensor values [P] of one statistic as one value per group [G]."""
    match feature.reduction:
        case "none":
            return values.expand(len(layout.sizes))
        case "mean":
            return values @ layout.mean
        case "sign":
            return (values @ layout.mean).sign()
        case "share":
            return (values @ layout.sum) / layout.numel
        case "log_rms":
            mean_square = (values.square() @ layout.sum) / layout.numel
            return (0.5 * mean_square.log()).clamp(-LOG_CLIP, LOG_CLIP)
        case "std" | "var":
            deviation = values - (values @ layout.mean)[layout.group_of]
            variance = deviation.square() @ layout.mean
            return variance if feature.reduction == "var" else variance.sqrt()


def standardise(columns: Tensor) -> Tensor:
    """Each column of [G, n] with mean 0 and population deviation 1; 0 if it has no spread."""
    centred = columns - columns.mean(0)
    spread = centred.square().mean(0).sqrt()
    # Below rounding error of the column's own size, spread is noise (always so with a single
    # group).
    limits = torch.finfo(columns.dtype)
    floor = 16 * limits.eps * columns.abs().amax(0)
    # In this order NaN stays NaN: a non-finite gradient must not look like a column without spread.
    return torch.where(spread <= floor, 0.0, centred / spread.clamp_min(limits.tiny))


def time_feature(step: int | Tensor, total_steps: int | None, layout: Layout) -> Tensor:
    """The time step: t / T, or 2σ(t/1000) − 1 where T is unknown; a scalar."""
    if isinstance(step, int):
        value = step / total_steps if total_steps else 2 / (1 + math.exp(-step / 1000)) - 1
        return layout.zero + value
    t = step.to(layout.zero)
    return t / total_steps if total_steps else 2 * torch.sigmoid(t / 1000) - 1


@torch.no_grad()
def group_features(
    products: Mapping[Pair, Tensor],
    table: Sequence[Feature],
    layout: Layout,
    step: int | Tensor,
    total_steps: int | None = None,
) -> Tensor:
    r"""The feature matrix :math:`F = [f_1; …; f_G]` (Sec. 3.3), shape [G, F].

    A missing gradient counts as a zero gradient, missing moments as zero. Finite wherever the
    gradients, moments and parameters are, and the squares of those and of v.

    Args:
        products: the ``needed_products`` of ``tensor_columns``, from ``layout.products``.
        table: the features, from ``feature_table``.
        layout: the layout of the groups.
        step: the step t about to be taken, from 1.
        total_steps: T, if known.
    """
    if not table:
        return layout.zero.expand(len(layout.sizes), 0)
    statistics = tensor_statistics(products, {f.statistic for f in table})
    statistics |= {
        "log_numel": layout.log_numel,
        "bias_ratio": layout.bias_ratio,
        "depth": layout.depth,
        "time_step": time_feature(step, total_steps, layout),
    }
    matrix = torch.stack(_reduced(table, statistics, layout), dim=1)
    if any(f.standardise for f in table):
        plain, standardised = matrix.unbind(1), standardise(matrix).unbind(1)
        chosen = [
            standardised[i] if feature.standardise else plain[i] for i, feature in enumerate(table)
        ]
        matrix = torch.stack(chosen, dim=1)
    return matrix
