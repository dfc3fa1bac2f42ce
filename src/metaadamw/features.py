r"""Sec. 3.3: statistics of the groups as a feature matrix F, shape [G, F].

``FEATURE_TABLES`` declares every feature set: the columns, their order, formula, and whether they
are standardised across groups. The length of a (filtered) table *is* the feature dimension. The
statistics are taken with the new gradient and with the moments and parameters before the step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from metaadamw.config import ModulatorConfig
from metaadamw.groups import is_bias, normalized_depths
from metaadamw.tokens import Token

__all__ = ["FEATURE_TABLES", "Feature", "Layout", "feature_table", "group_features"]

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
            (sum over number of entries), "log_rms", or "none" for what is per group already.
        standardise: whether the column is standardised across groups.
        option: the ``ModulatorConfig`` flag that switches it on, if any.
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


def feature_table(config: ModulatorConfig) -> tuple[Feature, ...]:
    """The columns that ``config`` selects, in order; the length is the feature dimension F.

    Example:
        >>> [f.name for f in feature_table(ModulatorConfig(features="basic", time_step=False))]
        ['grad_norm', 'exp_avg_norm', 'param_norm', 'cosine', 'exp_avg_sq_norm']
    """
    table = FEATURE_TABLES[config.features]
    return tuple(f for f in table if f.option is None or getattr(config, f.option))


class Layout:
    """Which tensor belongs to which group, and what never changes: sizes, bias ratio, depth.

    Args:
        param_groups: the optimizer's param groups.
        device: where the features are wanted.
        dtype: and in which precision.
    """

    def __init__(
        self, param_groups: Sequence[Mapping[str, Any]], device: torch.device, dtype: torch.dtype
    ) -> None:
        counts = [len(group["params"]) for group in param_groups]
        group_of = list(itertools.chain.from_iterable([g] * n for g, n in enumerate(counts)))
        self.param_ids = tuple(id(p) for group in param_groups for p in group["params"])
        self.device, self.dtype = device, dtype
        self.sizes = counts
        self.group_of = torch.tensor(group_of, dtype=torch.long, device=device)
        # Sums and means over the tensors of a group are one small matrix product.
        membership = torch.zeros(len(counts), len(group_of), dtype=dtype)
        for row, start, n in zip(
            range(len(counts)), itertools.accumulate([0, *counts]), counts, strict=False
        ):
            membership[row, start : start + n] = 1.0
        self.sum = membership.to(device).T.contiguous()  # [P, G]
        self.mean = self.sum / self.sum.sum(0).clamp_min(1.0)

        numels = [
            float(sum(p.numel() * (2 if p.is_complex() else 1) for p in group["params"]))
            for group in param_groups
        ]
        self.numel = self._column(numels).clamp_min(1.0)  # [G]
        self.log_numel = self.numel.log()
        biases, depths = [], []
        names = [
            list(group.get("param_names", [""] * len(group["params"]))) for group in param_groups
        ]
        by_name = iter(normalized_depths(itertools.chain.from_iterable(names)))
        for group, group_names in zip(param_groups, names, strict=True):
            flags = [is_bias(n, p) for n, p in zip(group_names, group["params"], strict=True)]
            values = [0.5 if d is None else d for d in itertools.islice(by_name, len(flags))]
            biases.append(sum(flags) / max(len(flags), 1))
            depths.append(group.get("depth", sum(values) / max(len(values), 1)))
        self.bias_ratio = self._column(biases)
        self.depth = self._column(depths)

    def _column(self, values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=self.dtype, device=self.device)

    def fits(self, param_groups: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the param groups still hold the tensors this layout was made for."""
        return self.param_ids == tuple(id(p) for group in param_groups for p in group["params"])


def _stack(values: Iterable[Tensor], layout: Layout) -> Tensor:
    """Scalars of any device and precision as one vector [P]."""
    return torch.stack(
        [v.to(device=layout.device, dtype=layout.dtype, non_blocking=True) for v in values]
    )


def norms(tensors: Sequence[Tensor | None], layout: Layout) -> Tensor:
    """Euclidean norm of each tensor, [P]; 0 for None."""
    present = [t for t in tensors if t is not None]
    if not present:
        return torch.zeros(len(tensors), dtype=layout.dtype, device=layout.device)
    # Half-precision tensors are accumulated in float32; the others in their own precision.
    half = any(t.dtype in (torch.bfloat16, torch.float16) for t in present)
    values = iter(torch._foreach_norm(present, 2, dtype=torch.float32 if half else None))
    if len(present) == len(tensors):
        return _stack(values, layout)
    zero = torch.zeros((), dtype=layout.dtype, device=layout.device)
    return _stack((zero if t is None else next(values) for t in tensors), layout)


def dots(xs: Sequence[Tensor | None], ys: Sequence[Tensor | None], layout: Layout) -> Tensor:
    """Inner product of each pair of tensors, [P]; 0 where one is None."""
    zero = torch.zeros((), dtype=layout.dtype, device=layout.device)

    def dot(x: Tensor | None, y: Tensor | None) -> Tensor:
        if x is None or y is None:
            return zero
        dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
        return torch.dot(x.reshape(-1).to(dtype), y.reshape(-1).to(dtype))

    return _stack((dot(x, y) for x, y in zip(xs, ys, strict=True)), layout)


def cosines(products: Tensor, x_norms: Tensor, y_norms: Tensor) -> Tensor:
    """Cosines from inner products and norms; 0 where a norm is 0."""
    # Dividing twice keeps ‖x‖‖y‖ from underflowing.
    tiny = torch.finfo(products.dtype).tiny
    return products / x_norms.clamp_min(tiny) / y_norms.clamp_min(tiny)


def tensor_statistics(
    tokens: Sequence[Token], needed: set[str], layout: Layout
) -> dict[str, Tensor]:
    """The ``needed`` statistics of every tensor, each [P], and nothing else."""
    params = [p for token in tokens for p in token.params]
    grads = [g for token in tokens for g in token.grads]
    exp_avgs = [m for token in tokens for m in token.exp_avgs]
    exp_avg_sqs = [v for token in tokens for v in token.exp_avg_sqs]

    def zeros(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
        values = (
            torch.tensor(p.numel()) if t is None else (t == 0).sum()
            for t, p in zip(tensors, like, strict=True)
        )
        return _stack(values, layout)

    statistics: dict[str, Callable[[], Tensor]] = {
        "grad_norm": lambda: norms(grads, layout),
        "exp_avg_norm": lambda: norms(exp_avgs, layout),
        "param_norm": lambda: norms(params, layout),
        "exp_avg_sq_norm": lambda: norms(exp_avg_sqs, layout),
        "grad_zeros": lambda: zeros(grads, params),
        "exp_avg_zeros": lambda: zeros(exp_avgs, params),
    }
    wanted = needed | ({"grad_norm", "exp_avg_norm"} if "cosine" in needed else set())
    result = {name: compute() for name, compute in statistics.items() if name in wanted}
    if "cosine" in needed:
        products = dots(grads, exp_avgs, layout)
        result["cosine"] = cosines(products, result["grad_norm"], result["exp_avg_norm"])
    return result


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
    floor = 16 * torch.finfo(columns.dtype).eps * columns.abs().amax(0)
    return torch.where(
        spread > floor, centred / spread.clamp_min(torch.finfo(columns.dtype).tiny), 0.0
    )


def time_feature(step: int | Tensor, total_steps: int | None, layout: Layout) -> Tensor:
    """T / T, or 2σ(t/1000) − 1 where T is unknown; a scalar."""
    t = torch.as_tensor(step, device=layout.device).to(layout.dtype)
    return t / total_steps if total_steps else 2 * torch.sigmoid(t / 1000) - 1


@torch.no_grad()
def group_features(
    tokens: Sequence[Token],
    table: Sequence[Feature],
    layout: Layout,
    step: int | Tensor,
    total_steps: int | None = None,
) -> Tensor:
    r"""The feature matrix :math:`F = [f_1; …; f_G]` (Sec. 3.3), shape [G, F].

    A missing gradient counts as a zero gradient, missing moments as zero. Finite wherever the
    gradients, moments and parameters are.

    Args:
        tokens: the groups' tensors.
        table: the columns, from ``feature_table``.
        layout: the layout of the groups.
        step: the step t about to be taken, from 1.
        total_steps: T, if known.
    """
    per_tensor = tensor_statistics(tokens, {f.statistic for f in table}, layout)
    per_group = {
        "log_numel": layout.log_numel,
        "bias_ratio": layout.bias_ratio,
        "depth": layout.depth,
        "time_step": time_feature(step, total_steps, layout),
    }
    columns = torch.stack(
        [_reduce(f, (per_tensor | per_group)[f.statistic], layout) for f in table], dim=1
    )
    if any(f.standardise for f in table):
        mask = torch.tensor([f.standardise for f in table], device=layout.device)
        columns = torch.where(mask, standardise(columns), columns)
    return columns
