r"""What learns beside the model: modulator, log-variances and the optimizer that moves them.

``MetaAdamW`` owns one ``Learner``; everything here is small, [G] or [G, F].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from metaadamw.alignment import HessianProduct
from metaadamw.config import MetaConfig, ModulatorConfig, check_together
from metaadamw.directions import LastDirections, LastStep
from metaadamw.evaluation import LossFunction
from metaadamw.features import (
    EMBEDDING_DIM,
    feature_table,
    group_features,
    needed_products,
    tensor_columns,
)
from metaadamw.gauss_newton import gauss_newton_gradient
from metaadamw.kernels.adamw import Written
from metaadamw.kernels.modulator import learn
from metaadamw.known import Known, can_know
from metaadamw.layout import Layout, Pair
from metaadamw.learned_state import learned_state, restore
from metaadamw.lookahead import TERMS
from metaadamw.meta_optimizer import Kind, MetaOptimizer
from metaadamw.meta_update import MetaUpdate, TokensOf, check_batches, meta_gradient
from metaadamw.modulator import BaseModulator, Modulation, Modulator
from metaadamw.online import ONLINE_PRODUCTS, modulator_gradient, online_signal
from metaadamw.placement import follow, home
from metaadamw.precision import full_precision
from metaadamw.ranks import Ranks
from metaadamw.replay import Schedule
from metaadamw.scalars import GroupScalars
from metaadamw.tokens import Token
from metaadamw.uncertainty import PriorityUncertaintyWeighting
from metaadamw.window import WINDOW_PRODUCTS, Windows, mean_speed, window_at, window_signal

__all__ = ["Learner"]


class Learner:
    """The modulator and everything that trains it.

    Args:
        param_groups: the optimizer's groups.
        config: the modulator and its features.
        meta: how it learns.
        schedule: a recorded trajectory to replay instead.
        total_steps: T of the time-step feature, if known.
        seed: seed of the initial weights.
        eps_inside_sqrt: the printed form of Eq. 4.
        capturable: count the steps on the device.
    """

    def __init__(
        self,
        param_groups: Sequence[Mapping[str, Any]],
        config: ModulatorConfig,
        meta: MetaConfig,
        *,
        schedule: Schedule | None,
        total_steps: int | None,
        seed: int,
        eps_inside_sqrt: bool,
        capturable: bool,
    ) -> None:
        check_together(config, meta)
        self.config, self.meta, self.schedule = config, meta, schedule
        self.total_steps, self.eps_inside_sqrt = total_steps, eps_inside_sqrt
        self.capturable = capturable
        device, dtype = home(param_groups)
        self.names = names = [str(group["name"]) for group in param_groups]
        self.table = feature_table(config)
        self.products = needed_products(self.table)
        self.layout = Layout(param_groups, device, dtype)
        self.modulator: BaseModulator = (
            Modulator(
                len(self.table),
                len(param_groups),
                config,
                embedding_dim=EMBEDDING_DIM.get(config.features, 0),
                frozen_gates="frozen_gates" in meta.as_run,
                seed=seed,
                device=device,
                dtype=dtype,
            )
            if config.layers
            else GroupScalars(names, config, device=device, dtype=dtype)
        )
        self.weighting = PriorityUncertaintyWeighting(
            meta.priorities, bound=meta.log_variance_bound, device=device, dtype=dtype
        )
        self.optimizer = MetaOptimizer(cast(Kind, meta.optimizer), cast(float, meta.lr))
        self.consecutive_optimizer = MetaOptimizer("adam", meta.consecutive_lr)
        self.hvp: Literal["auto"] | HessianProduct = meta.hvp
        self.steps = 0
        self.device_steps = torch.zeros((), device=device, dtype=torch.float32)
        self.last_meta_step = 0
        self.applied = torch.zeros((), device=device, dtype=torch.long)
        self.skipped = torch.zeros((), device=device, dtype=torch.long)
        self.features: Tensor | None = None
        self.modulation: Modulation | None = None
        self.last: LastStep | None = None
        self.known = Known()
        self.highest_lr = torch.zeros_like(self.layout.numel)
        self._window = (0, 0)
        self.report: MetaUpdate | None = None
        if schedule is not None:
            schedule.check_groups(names)

    @property
    def on_host(self) -> bool:
        """Whether reading a number of ours costs nothing."""
        return self.layout.device.type == "cpu" and not self.capturable

    @property
    def refreshes(self) -> bool:
        """Whether α and β are made anew before the step to come."""
        held = self.meta.window > 1 and not self.meta.consecutive_lr
        return self._at_window or not (held or self.steps % self.config.update_every)

    @property
    def asks_for_squares(self) -> bool:
        """Whether the next step will want statistics that this one can take as it writes."""
        reads_all = self.meta.mode == "online"  # for its signal
        refreshes = self.schedule is None and (self.steps + 1) % self.config.update_every == 0
        return refreshes and not reads_all and can_know(self.layout, self.products)

    @property
    def learned(self) -> list[Tensor]:
        """The tensors that the meta-optimizer moves."""
        return [*self.modulator.weights, *self.weighting.parameters()]

    @property
    def due(self) -> bool:
        """Line 8 of Algorithm 1, and not yet done at this step."""
        return (
            self.meta.mode == "lookahead"
            and self.steps > self.last_meta_step
            and self.steps >= self.meta.warmup_steps
            and self.steps % self.meta.every == 0
        )

    @property
    def last_modulation(self) -> Modulation:
        """The modulation of the last step; α = β = 1 before the first."""
        if self.modulation is not None:
            return self.modulation
        ones = torch.ones_like(self.layout.numel)
        return Modulation(ones, ones.clone(), ones / 2, ones / 2)

    @property
    def decay_corrected_at(self) -> int | None:
        """The t at which the authors' code corrects the weight decay like m; None: it does not."""
        return self.steps + 1 if "bias_corrected_decay" in self.meta.as_run else None

    def metrics(self, names: Sequence[str]) -> dict[str, Tensor | int | float]:
        """What a logger may want, flat, without waiting for the device."""
        alpha, beta, *_ = (factor.clone() for factor in self.last_modulation)
        result: dict[str, Tensor | int | float] = {}
        for i, name in enumerate(names):
            result[f"{name}/alpha"], result[f"{name}/beta"] = alpha[i], beta[i]
        result["meta/steps"] = self.steps
        result["meta/applied"] = self.applied.clone()
        result["meta/skipped"] = self.skipped.clone()
        if self.report is not None:
            terms = {f"meta/{term}": getattr(self.report, term) for term in ("total", *TERMS)}
            result |= {key: value for key, value in terms.items() if value is not None}
        return result

    def compute_features(self, tokens: Sequence[Token]) -> Tensor:
        """The features of the step about to be taken, [G, F]."""
        follow(self, [token.group for token in tokens])
        columns = tensor_columns(tokens)
        with full_precision(self.layout.device):
            return self._features(self.layout.products(columns, self.products))

    def _features(self, products: Mapping[Pair, Tensor]) -> Tensor:
        step = self.device_steps + 1 if self.capturable else self.steps + 1
        return group_features(products, self.table, self.layout, step, self.total_steps)

    def modulate(self, tokens: Sequence[Token]) -> Modulation:
        """Lines 2–3 of Algorithm 1, every ``update_every`` steps; learns first in mode "online"."""
        if self.schedule is not None:
            layout = self.layout
            self.modulation = self.schedule.at(self.steps, layout.device, layout.dtype)
        elif self.modulation is None or self.refreshes:
            columns, pairs = tensor_columns(tokens), self.products
            learns = self.meta.mode == "online" and self.steps >= self.meta.warmup_steps
            on_beat = self.steps % self.config.update_every == 0
            last, windows = self.last if learns and on_beat else None, None
            # A group has just been added: at which rates the last steps went is not known any more,
            # so their window goes on to the end of the next.
            if self._at_window and (self.modulation is not None or not self.steps):
                windows = Windows(
                    tokens, eps_inside_sqrt=self.eps_inside_sqrt, capturable=self.capturable
                )
                columns |= windows.end(*self._rates(tokens))
                pairs = [*pairs, *WINDOW_PRODUCTS]
            if last is not None:
                columns["direction"] = LastDirections(
                    tokens, last, eps_inside_sqrt=self.eps_inside_sqrt, capturable=self.capturable
                )
                pairs = [*pairs, *ONLINE_PRODUCTS]
            products = self.known.products(self.layout, columns, list(dict.fromkeys(pairs)))
            ok: bool | Tensor = True
            if last is not None:
                ok = self._compare(last.features, *online_signal(products, last, self.layout))
            features, finite = self._finite(self._features(products))
            self.features = self._kept(self.features, features)
            if learns and windows is not None:
                signal = window_signal(products, self.layout, self._mean_speed(tokens))
                none = torch.zeros_like(signal)
                ok = ok & self._learn(self.optimizer, self.features, signal, none)
            self._count_skipped(finite, ok)
            factors: Modulation = self.modulator(self.features)
            old = self.modulation or (None,) * len(factors)
            self.modulation = Modulation(*map(self._kept, old, factors))
            if windows is not None:
                windows.begin(self._rates(tokens)[0])
        return self.modulation

    @property
    def _at_window(self) -> bool:
        """Whether the step to come is the first of a window."""
        if self.meta.window == 1:
            return False
        if not self._window[0] <= self.steps < self._window[1]:
            self._window = window_at(self.steps, self.meta.window)
        return self._window[0] == self.steps

    def _mean_speed(self, tokens: Sequence[Token]) -> Tensor:
        """How far the mean of the factors follows its part of the signal, [G]."""
        lr = self.layout.vector([token.group["lr"] for token in tokens])
        self.highest_lr = torch.maximum(self.highest_lr, lr)
        held = self.config.mean_preserving  # at any speed
        return mean_speed(self.meta.mean_speed, lr, lr if held else self.highest_lr)

    def _rates(self, tokens: Sequence[Token]) -> tuple[Tensor, Tensor]:
        """The rates η α_g and the decays β_g λ of the step to come, [G]."""
        alpha, beta, *_ = self.last_modulation
        groups = [token.group for token in tokens]
        rates = self.layout.vector([group["lr"] for group in groups])
        return rates * alpha, self.layout.vector([group["weight_decay"] for group in groups]) * beta

    def _kept(self, old: Tensor | None, new: Tensor) -> Tensor:
        """What the next step will read: for a CUDA graph always the same memory."""
        return old.copy_(new) if self.capturable and old is not None else new

    def _finite(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """A non-finite gradient must not reach the modulator: it sees the last features again."""
        held = torch.zeros_like(features) if self.features is None else self.features
        finite = torch.isfinite(features).all()
        if self.on_host:  # asking costs nothing here
            return features if finite else held, finite
        return torch.where(finite, features, held), finite

    def _count_skipped(self, finite: Tensor, learned: bool | Tensor) -> None:
        """Features held, nothing learned, or both, from one gradient: that counts once."""
        if not self.on_host:
            self.skipped += ~(finite & learned)
        elif not (finite and learned):
            self.skipped += 1

    def _compare(self, features: Tensor, *signals: Tensor) -> bool | Tensor:
        """Learn from consecutive steps; with windows, only what sets the groups apart."""
        if self.meta.window == 1:
            return self._learn(self.optimizer, features, *signals)
        scalars = cast(GroupScalars, self.modulator)
        before = scalars.raw.detach().clone()
        ok = self._learn(self.consecutive_optimizer, features, *signals)
        scalars.hold_mean(before, signals[0] != 0)
        return ok

    def _learn(self, by: MetaOptimizer, features: Tensor, *signals: Tensor) -> bool | Tensor:
        """One update from what the gradient said of α and β, each [G]; whether all was finite."""
        learned = self.learned
        if by.kind == "gauss_newton":
            gradient = gauss_newton_gradient(self.modulator, features, signals, learned)
        else:
            penalties = self.meta.weight_decay, self.meta.gate_penalty
            done = None
            if self.on_host:
                done = learn(self.modulator, by, learned, features, signals, *penalties)
            if done is not None:
                self.applied += done
                return done
            gradient = modulator_gradient(self.modulator, features, signals, learned, *penalties)
        # One flag on the device: asking the host here would stall an accelerator at every step.
        largest = torch._foreach_norm([*signals, *gradient], float("inf"))
        ok = torch.isfinite(torch.stack(largest)).all()
        by.step(learned, gradient, ok)
        self.applied += ok
        return ok

    def stepped(
        self,
        tokens: Sequence[Token],
        rates: list[float | Tensor],
        decays: list[float | Tensor],
        written: Written | None,
    ) -> None:
        """Take note of a finished step, of its η α_g and β_g λ, and of what it has written."""
        self.known.keep(written)
        self.steps += 1
        if self.capturable:
            self.device_steps += 1
        compares = self.meta.window == 1 or self.meta.consecutive_lr > 0
        if self.meta.mode == "online" and compares and self.features is not None:
            moved = tuple(g is not None for token in tokens for g in token.grads)
            hyperparameters = tuple((*t.group["betas"], t.group["eps"]) for t in tokens)
            old = self.last or (None, None, None)
            self.last = LastStep(
                self.features,  # read before the next features are written
                self._kept(old[1], self.layout.vector(rates)),
                self._kept(old[2], self.layout.vector(decays)),
                moved,
                hyperparameters,
            )

    @torch._disable_dynamo  # type: ignore[attr-defined]  # a compiled model inside stays compiled
    def update(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        batches: Mapping[str, Any],
        param_groups: Sequence[Mapping[str, Any]],
        tokens_of: TokensOf,
        *,
        training_loss: Tensor | float | None,
        maximize: bool,
    ) -> MetaUpdate:
        """Algorithm 2."""
        follow(self, param_groups)
        learned = self.learned
        ranks = Ranks(model, self.layout.shards)
        ranks.begin(
            lambda: check_batches(self.meta, batches, has_gradient=training_loss is not None),
            {
                "steps": self.steps,
                "training_loss is None": training_loss is None,
                "sum of the modulator's weights": str([t.sum().item() for t in learned]),
            },
            batches,
        )
        result = meta_gradient(
            model=model,
            loss_fn=loss_fn,
            batches=batches,
            params=[p for group in param_groups for p in group["params"]],
            tokens_of=tokens_of,
            features_of=self.compute_features,
            modulator=self.modulator,
            weighting=self.weighting,
            learned=learned,
            layout=self.layout,
            config=self.meta,
            hvp=self.hvp,
            training_loss=training_loss,
            maximize=maximize,
            eps_inside_sqrt=self.eps_inside_sqrt,
            ranks=ranks,
        )
        report = result.report
        if self.hvp == "auto" and report.hvp == "finite_difference":
            self.hvp = report.hvp  # that there is nothing else is found out once
        if result.grads is not None:
            ok = torch.ones((), dtype=torch.bool, device=self.layout.device)
            self.optimizer.step(learned, result.grads, ok)
        self.applied += int(report.applied)
        self.skipped += int(not report.applied)
        self.last_meta_step = self.steps
        self.report = report
        return report

    def restart_from(self, steps: int) -> None:
        """Take over the position of a run that had no modulator (an AdamW checkpoint)."""
        self.steps = self.last_meta_step = steps
        self.device_steps.fill_(steps)
        self.features = self.modulation = self.last = None

    def state_dict(self, param_groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Plain tensors, numbers and strings."""
        return learned_state(self, param_groups)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a checked ``state``."""
        restore(self, state)
