"""What can be chosen: configurations that validate themselves."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, cast

__all__ = ["MetaConfig", "ModulatorConfig"]

FEATURE_SETS = (
    "basic",
    "basic_plus",
    "enhanced",
    "norm_basic",
    "norm_basic_plus",
    "scale_free",
    "basic_plus_as_run",
)
_META_RATES = {"sgd": 1e-4, "adam": 1e-3, "gauss_newton": 2.0}
AS_RUN = ("detached_beta", "stored_moments", "frozen_gates", "bias_corrected_decay")


def check_choice(name: str, value: object, allowed: Collection[str]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of the ``allowed`` strings."""
    if not isinstance(value, str) or value not in allowed:
        close = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{name} must be one of {sorted(allowed)}, got {value!r}{hint}")


def check_number(
    name: str,
    value: Any,
    low: float,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Raise unless ``value`` is a finite real number in the interval from ``low`` to ``high``."""
    interval = (
        f"{'(' if open_low else '['}{low}, {high}{')' if open_high or high == math.inf else ']'}"
    )
    # Real: also the scalars of NumPy, which a scheduler may compute with.
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number in {interval}, got {value!r}")
    number = cast(float, value)
    above = number > low if open_low else number >= low
    below = number < high if open_high else number <= high
    if not (math.isfinite(number) and above and below):
        raise ValueError(f"{name} must be in {interval}, got {value!r}")


def check_count(name: str, value: Any, low: int) -> None:
    """Raise unless ``value`` is an integer of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer >= {low}, got {value!r}")
    if value < low:
        raise ValueError(f"{name} must be an integer >= {low}, got {value!r}")


def check_flag(name: str, value: Any) -> None:
    """Raise ``TypeError`` unless ``value`` is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_numbers(
    name: str, value: Any, length: int | None, low: float, *, open_low: bool = False
) -> None:
    """Raise unless ``value`` is a sequence of ``length`` numbers above ``low``."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a sequence of numbers, got {value!r}")
    if len(value) == 0 or (length is not None and len(value) != length):
        wanted = "at least 1" if length is None else length
        raise ValueError(f"{name} must have {wanted} entries, got {len(value)}: {value!r}")
    for i, entry in enumerate(value):
        check_number(f"{name}[{i}]", entry, low, open_low=open_low)


def _pairs(value: Any) -> tuple[tuple[str, Any], ...] | None:
    """A mapping from names as pairs, which keep a configuration hashable; None for all else."""
    entries = value.items() if isinstance(value, Mapping) else value
    if not isinstance(value, (Mapping, list, tuple)):
        return None
    if not all(isinstance(entry, (list, tuple)) and len(entry) == 2 for entry in entries):
        return None
    if not all(isinstance(name, str) for name, _ in entries):
        return None
    return tuple((name, start) for name, start in entries)


@dataclass(frozen=True, kw_only=True)
class ModulatorConfig:
    r"""The modulator :math:`\Phi` of Sec. 3.4 and the features it reads (Sec. 3.3).

    Args:
        features: the feature set, a name in ``metaadamw.features.FEATURE_TABLES``: "basic" (paper),
            "basic_plus", "enhanced", "norm_basic", "norm_basic_plus", "scale_free" (ours), or
            "basic_plus_as_run" (the columns behind the authors' "basic_plus" numbers).
        second_moment_norm: add the norm of ``exp_avg_sq`` to the features.
        time_step: add the time step.
        feature_gating: multiply each column with a learned gate, regularised by
            ``MetaConfig.gate_sparsity``.
        layers: encoder layers L; 0 for no attention: every group learns raw outputs of its own, and
            there are no features.
        heads: attention heads H; the features are zero-padded to a multiple of it.
        hidden_dim: width of the feed-forward part of a layer.
        alpha_range: Eq. 7, α lies in 1 ± alpha_range / 2; from 0 (α is 1) to 2. With
            ``scale="log"`` the largest :math:`|\log\alpha|`, any number from 0.
        beta_range: Eq. 8, likewise for β.
        scale: "linear" (Eqs. 7–8) or "log" (ours): :math:`\alpha = \exp(r\tanh(raw/r))` with
            r = alpha_range, so that halving is as far away as doubling; likewise for β.
        alpha_start: α at birth with ``init="identity"``, within its range; with ``layers=0`` also a
            mapping from names of groups, for each its own, and 1 for all others.
        mean_preserving: with ``scale="log"``, the geometric mean of α over the groups stays 1
            (ours): your learning rate and its schedule hold for all of them together, and α only
            says how much of it goes where. Then α lies within e^±2·alpha_range.
        init: "identity" (output layer zero: α = β = 1 until something was learned) or "xavier"
            (paper).
        update_every: steps between two refreshes of α and β; they are held in between, and mode
            "online" learns at refreshes only. Windows hold them anyway, and only what
            ``MetaConfig.consecutive_lr`` asks for learns within one.

    Raises:
        ValueError: a value out of range.
        TypeError: a value of the wrong type, an unknown keyword.

    Example:
        >>> ModulatorConfig(features="scale_free", layers=1).heads
        1
    """

    features: str = "basic"
    second_moment_norm: bool = True
    time_step: bool = True
    feature_gating: bool = False
    layers: int = 2
    heads: int = 1
    hidden_dim: int = 16
    alpha_range: float = 1.0
    beta_range: float = 1.0
    scale: Literal["linear", "log"] = "linear"
    alpha_start: float | Mapping[str, float] | tuple[tuple[str, float], ...] = 1.0
    mean_preserving: bool = False
    init: Literal["identity", "xavier"] = "identity"
    update_every: int = 1

    def __post_init__(self) -> None:
        """Validate every field."""
        check_choice("features", self.features, FEATURE_SETS)
        for flag in ("second_moment_norm", "time_step", "feature_gating", "mean_preserving"):
            check_flag(flag, getattr(self, flag))
        check_count("layers", self.layers, 0)
        for count in ("heads", "hidden_dim", "update_every"):
            check_count(count, getattr(self, count), 1)
        if self.feature_gating and not self.layers:
            raise ValueError("feature_gating must be False with layers=0: no feature is read")
        check_choice("scale", self.scale, ("linear", "log"))
        widest = 2.0 if self.scale == "linear" else math.inf
        check_number("alpha_range", self.alpha_range, 0.0, widest)
        check_number("beta_range", self.beta_range, 0.0, widest)
        check_choice("init", self.init, ("identity", "xavier"))
        starts = _pairs(self.alpha_start)
        if starts is not None:
            if self.layers:
                raise ValueError(
                    f"alpha_start must be a number with layers={self.layers}; each group can have "
                    "its own with layers=0"
                )
            for name, start in starts:
                self._check_start(f"alpha_start[{name!r}]", start)
            object.__setattr__(self, "alpha_start", starts)
        else:
            self._check_start("alpha_start", self.alpha_start)
        alike = starts is None and self.alpha_start != 1.0
        if self.mean_preserving and (self.scale != "log" or alike):
            raise ValueError(
                "mean_preserving=True needs scale='log' and alpha_start=1 or a mapping, got "
                f"scale={self.scale!r}, alpha_start={self.alpha_start!r}"
            )

    def _check_start(self, name: str, start: Any) -> None:
        low, high = self.alpha_limits
        check_number(name, start, low, high)
        if start != 1.0:
            if self.init != "identity":
                raise ValueError(f"alpha_start must be 1 with init={self.init!r}")
            if start in (low, high):
                raise ValueError(f"{name} must be within ({low}, {high}), got {start!r}")

    @property
    def alpha_limits(self) -> tuple[float, float]:
        """The least and the greatest α."""
        if self.scale == "linear":
            return 1 - self.alpha_range / 2, 1 + self.alpha_range / 2
        return math.exp(-self.alpha_range), math.exp(self.alpha_range)

    def raw_start(self, name: str = "") -> float:
        """The raw output that ``alpha_start`` of a group comes from."""
        starts = _pairs(self.alpha_start)
        given: Any = self.alpha_start if starts is None else dict(starts).get(name, 1.0)
        start = float(given)
        if start == 1.0:
            return 0.0
        if self.scale == "linear":
            share = 0.5 + (start - 1) / self.alpha_range
            return math.log(share / (1 - share))
        return self.alpha_range * math.atanh(math.log(start) / self.alpha_range)


@dataclass(frozen=True, kw_only=True)
class MetaConfig:
    r"""How the modulator learns (Sec. 3.5).

    ``optimizer`` and ``lr`` are never None afterwards: they are what that stood for. So
    ``dataclasses.replace`` hands them on like any other choice; for those of another mode or
    optimizer say ``replace(config, mode="online", optimizer=None, lr=None)``.

    Args:
        mode: "lookahead" (Algorithm 2, the user calls ``update_attention``), "online" (the free
            hypergradient, learns inside ``step()``) or "off" (a frozen modulator).
        objective: "combined" (Eq. 13), or one term alone: "gradient_alignment" (Eq. 10),
            "loss_decrease" (Eq. 11), "generalization_gap" (Eq. 12).
        priorities: :math:`p_i > 0` of Eq. 13, in the order of the three terms.
        weighting: "uncertainty" (Eq. 13) or "fixed".
        fixed_weights: weights of the three terms under "fixed".
        every: :math:`K_{meta}`, steps between two meta-updates in mode "lookahead".
        warmup_steps: training steps before the first one; in mode "online" before it learns.
        window: mode "online": steps of the first window, later ones grow with the run
            (``window.py``); 1 compares consecutive steps. Above 1 it needs two more copies of the
            parameters, and should be well above :math:`1/(1-\beta_1)`: 75 is a good choice.
        mean_speed: with a window: :math:`\kappa`, how far the mean of all groups' log factors
            follows its part of the signal, from 0 to 1; the differences between groups follow
            theirs in full. :math:`\kappa(\eta/\eta_{max})^2` where a schedule has turned the
            learning rate down.
        consecutive_lr: with a window and ``layers=0``: the learning rate of an Adam that also moves
            the factors within windows, at every ``update_every``-th step, by what consecutive steps
            say. Of α only the differences between groups: the mean of the raw outputs behind it is
            left to the windows; β, of which windows say nothing, as a whole. 0: all is left to the
            windows. Without a window, ``lr`` is what these steps learn by.
        optimizer: what moves the modulator; "sgd" (paper), "adam", or "gauss_newton" (ours, mode
            "online"): about the smallest change of the modulator that moves its raw outputs by
            ``lr`` times the signal's gradient with respect to them. None: "sgd" in mode
            "lookahead"; in mode "online" "adam", with a window "gauss_newton".
        lr: its learning rate :math:`\eta_{meta}`. None: 1e-3 for "adam", 1e-4 for "sgd", 2.0 for
            "gauss_newton".
        weight_decay: coefficient of :math:`\sum \lVert W \rVert_2` (not squared) over encoder
            tensors and output weight, or over the factors' raw outputs with ``layers=0``; without
            effect for "gauss_newton", as ``gate_sparsity``.
        hvp: product of Hessian and vector for Eq. 10: "exact", "finite_difference" (central),
            "forward_difference" (a gradient less, less accurate), or "auto" (exact where it exists;
            central elsewhere and for recurrent networks, where exact is slow).
        gap_at: Eq. 12 at "theta" (as printed: no gradient reaches the modulator) or at
            "theta_prime".
        log_variance_bound: the log-variances s of Eq. 13 stay within (-bound, bound), which bounds
            the objective below; None: the published, unbounded form.
        gate_sparsity: coefficient of :math:`\sum |gate\ logit|`; None: the same as
            ``weight_decay``.
        as_run: departures of the authors' code from their paper to repeat on purpose, any of
            "detached_beta", "stored_moments", "frozen_gates", "bias_corrected_decay".

    Raises:
        ValueError: a value out of range.
        TypeError: a value of the wrong type, an unknown keyword.

    Example:
        >>> MetaConfig(mode="online").optimizer
        'adam'
    """

    mode: Literal["lookahead", "online", "off"] = "lookahead"
    objective: Literal["combined", "gradient_alignment", "loss_decrease", "generalization_gap"] = (
        "combined"
    )
    priorities: tuple[float, ...] = (1.0, 1.0, 1.0)
    weighting: Literal["uncertainty", "fixed"] = "uncertainty"
    fixed_weights: tuple[float, ...] = (1.0, 0.3, 0.3)
    every: int = 100
    warmup_steps: int = 0
    window: int = 1
    mean_speed: float = 1.0
    consecutive_lr: float = 0.0
    optimizer: Literal["sgd", "adam", "gauss_newton"] | None = None
    lr: float | None = None
    weight_decay: float = 1e-4
    hvp: Literal["auto", "exact", "finite_difference", "forward_difference"] = "auto"
    gap_at: Literal["theta", "theta_prime"] = "theta"
    log_variance_bound: float | None = 3.0
    gate_sparsity: float | None = None
    as_run: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Resolve the defaults that depend on the mode, validate every field."""
        check_choice("mode", self.mode, ("lookahead", "online", "off"))
        check_choice(
            "objective",
            self.objective,
            ("combined", "gradient_alignment", "loss_decrease", "generalization_gap"),
        )
        check_numbers("priorities", self.priorities, 3, 0.0, open_low=True)
        check_choice("weighting", self.weighting, ("uncertainty", "fixed"))
        check_numbers("fixed_weights", self.fixed_weights, 3, 0.0)
        check_count("every", self.every, 1)
        check_count("warmup_steps", self.warmup_steps, 0)
        check_count("window", self.window, 1)
        if self.window > 1 and self.mode != "online":
            raise ValueError(f"window must be 1 in mode {self.mode!r}, got {self.window}")
        check_number("mean_speed", self.mean_speed, 0.0, 1.0)
        if self.window == 1 and self.mean_speed != 1:
            raise ValueError(f"mean_speed must be 1 without a window, got {self.mean_speed!r}")
        check_number("consecutive_lr", self.consecutive_lr, 0.0)
        if self.window == 1 and self.consecutive_lr:
            raise ValueError(
                "consecutive_lr must be 0 without a window, where lr is that of consecutive steps, "
                f"got {self.consecutive_lr!r}"
            )
        if self.optimizer is None:
            online = "adam" if self.window == 1 else "gauss_newton"
            object.__setattr__(self, "optimizer", online if self.mode == "online" else "sgd")
        check_choice("optimizer", self.optimizer, tuple(_META_RATES))
        if self.optimizer == "gauss_newton" and self.mode == "lookahead":
            raise ValueError("optimizer must be 'sgd' or 'adam' in mode 'lookahead'")
        if self.lr is None:
            object.__setattr__(self, "lr", _META_RATES[str(self.optimizer)])
        check_number("lr", self.lr, 0.0)
        check_number("weight_decay", self.weight_decay, 0.0)
        check_choice("hvp", self.hvp, ("auto", "exact", "finite_difference", "forward_difference"))
        check_choice("gap_at", self.gap_at, ("theta", "theta_prime"))
        if self.log_variance_bound is not None:
            check_number("log_variance_bound", self.log_variance_bound, 0.0, open_low=True)
        if self.gate_sparsity is not None:
            check_number("gate_sparsity", self.gate_sparsity, 0.0)
        if not isinstance(self.as_run, (tuple, list)):
            raise TypeError(f"as_run must be a tuple of names, got {self.as_run!r}")
        for name in self.as_run:
            check_choice("as_run", name, AS_RUN)
        if self.objective == "generalization_gap" and self.gap_at == "theta":
            warnings.warn(
                "objective='generalization_gap' with gap_at='theta' (Eq. 12 as printed) does not "
                "depend on the modulator and trains nothing; gap_at='theta_prime' does",
                stacklevel=3,
            )
        # Lists are welcome as arguments; tuples keep the configuration hashable.
        for field in ("priorities", "fixed_weights", "as_run"):
            object.__setattr__(self, field, tuple(getattr(self, field)))

    @property
    def gate_penalty(self) -> float:
        """Coefficient of Σ|gate logit|, of gates that learn."""
        if "frozen_gates" in self.as_run:
            return 0.0
        return self.weight_decay if self.gate_sparsity is None else self.gate_sparsity


def check_together(modulator: ModulatorConfig, meta: MetaConfig) -> None:
    """Raise ``ValueError`` where two configurations do not go together."""
    if modulator.layers and meta.consecutive_lr:
        raise ValueError(
            f"consecutive_lr must be 0 with layers={modulator.layers}, got {meta.consecutive_lr}"
        )
