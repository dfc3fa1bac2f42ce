"""From the groups' tensors to their factors: statistics, modulator and learning, in that order.

Knows no kind of modulator and no way of learning by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from metaadamw.learning.base import Home, Learning, LearningOptions, Step
from metaadamw.learning.lookahead.objective import TERMS
from metaadamw.modulators.base import Modulation, Modulator, ModulatorKind
from metaadamw.state.placement import home
from metaadamw.state.precision import full_precision
from metaadamw.state.token import Token
from metaadamw.statistics.features import group_features, needed_products, tensor_columns
from metaadamw.statistics.known import Known, can_know
from metaadamw.statistics.layout import Layout, Pair
from metaadamw.update.one_pass import Written

__all__ = ["Controller"]


class Controller:
    """The modulator of an optimizer, what moves it, and where both stand.

    Args:
        param_groups: the optimizer's groups.
        kind: the modulator.
        learning: what moves it.
        total_steps: T of the time-step feature, if known.
        seed: seed of the initial weights.
        eps_inside_sqrt: the printed form of Eq. 4.
        capturable: count the steps on the device.
    """

    def __init__(
        self,
        param_groups: Sequence[Mapping[str, Any]],
        kind: ModulatorKind,
        learning: LearningOptions,
        *,
        total_steps: int | None,
        seed: int,
        eps_inside_sqrt: bool,
        capturable: bool,
    ) -> None:
        self.total_steps, self.eps_inside_sqrt = total_steps, eps_inside_sqrt
        self.capturable = capturable
        device, dtype = home(param_groups)
        self.names = [str(group["name"]) for group in param_groups]
        self.table = kind.table
        self.products = needed_products(self.table)
        self.layout = Layout(param_groups, device, dtype)
        self.modulator: Modulator = kind.build(self.names, seed=seed, device=device, dtype=dtype)
        self.learning: Learning = learning.start(
            Home(self.modulator, self.layout, eps_inside_sqrt, capturable)
        )
        self.bias_corrected_decay = learning.decay_is_bias_corrected
        self.steps = 0
        self.device_steps = torch.zeros((), device=device, dtype=torch.float32)
        self.skipped = torch.zeros((), device=device, dtype=torch.long)
        self.features: Tensor | None = None
        self.modulation: Modulation | None = None
        self.known = Known()

    @property
    def on_host(self) -> bool:
        """Whether reading a number of ours costs nothing."""
        return self.layout.device.type == "cpu" and not self.capturable

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
        return self.steps + 1 if self.bias_corrected_decay else None

    @property
    def asks_for_squares(self) -> bool:
        """Whether the next step will want statistics that this one can take as it writes."""
        return (
            not self.learning.in_step  # for its signal it reads everything anyway
            and self.learning.refreshes(self.steps + 1)
            and can_know(self.layout, self.products)
        )

    # Before the update ---------------------------------------------------------------------------

    def step(self, tokens: Sequence[Token], state: Mapping[Tensor, dict[str, Any]]) -> Step:
        """The step about to be taken."""
        return Step(self.steps, tokens, state, self.layout, self.modulation)

    def features_of(self, tokens: Sequence[Token]) -> Tensor:
        """The features of the step about to be taken, [G, F]."""
        with full_precision(self.layout.device):
            return self._features(self.layout.products(tensor_columns(tokens), self.products))

    def _features(self, products: Mapping[Pair, Tensor]) -> Tensor:
        step = self.device_steps + 1 if self.capturable else self.steps + 1
        return group_features(products, self.table, self.layout, step, self.total_steps)

    def modulate(self, step: Step) -> Modulation:
        """Lines 2–3 of Algorithm 1: read, learn from what was read, say α and β."""
        if self.modulation is not None and not self.learning.refreshes(self.steps):
            return self.modulation
        reads = self.learning.reads(step)
        products = self.known.products(
            self.layout,
            {**tensor_columns(step.tokens), **reads.columns},
            list(dict.fromkeys([*self.products, *reads.pairs])),
        )
        features, finite = self._finite(self._features(products))
        learned = self.learning.learn(step, products, features)
        # Only now: what was learned from may lie in the memory of the features before.
        self.features = self._kept(self.features, features)
        self._count_skipped(finite, learned)
        factors = self.modulator.at(self.steps, self.features)
        old = self.modulation or (None,) * len(factors)
        self.modulation = Modulation(*map(self._kept, old, factors))
        self.learning.begin(step, self.modulation)
        return self.modulation

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

    def written(self) -> tuple[list[object], list[Tensor]]:
        """What a step may change: objects by their attributes, small tensors in place."""
        tensors = [*self.learning.written(), self.skipped]
        if self.capturable:
            held = () if self.features is None else (self.features,)
            tensors += [self.device_steps, *held, *(self.modulation or ())]
        return [self, self.known, *self.learning.parts()], tensors

    # After it ------------------------------------------------------------------------------------

    def stepped(
        self,
        step: Step,
        rates: Sequence[float | Tensor],
        decays: Sequence[float | Tensor],
        written: Written | None,
    ) -> None:
        """Take note of a finished step, of its η α_g and β_g λ, and of what it has written."""
        self.known.keep(written)
        self.steps += 1
        if self.capturable:
            self.device_steps += 1
        self.learning.stepped(step, self.features, rates, decays)

    def metrics(self) -> dict[str, Tensor | int | float]:
        """What a logger may want, flat, without waiting for the device."""
        alpha, beta, *_ = (factor.clone() for factor in self.last_modulation)
        result: dict[str, Tensor | int | float] = {}
        for i, name in enumerate(self.names):
            result[f"{name}/alpha"], result[f"{name}/beta"] = alpha[i], beta[i]
        result["meta/steps"] = self.steps
        result["meta/applied"] = self.learning.applied.clone()
        result["meta/skipped"] = self.skipped.clone()
        report = self.learning.report
        if report is not None:
            terms = {f"meta/{term}": getattr(report, term) for term in ("total", *TERMS)}
            result |= {key: value for key, value in terms.items() if value is not None}
        return result

    # Where the parameters go ---------------------------------------------------------------------

    def follow(self, param_groups: Sequence[Mapping[str, Any]]) -> None:
        """Notice groups and parameters that were added, taken away or moved, and go along.

        ``Module.to`` leaves the parameters the same objects, so an optimizer may be built before
        it. A group is the same as before if its name is.
        """
        if self.layout.fits(param_groups):
            return
        # Whoever asks for features or metrics may be in inference mode (a validation): what is made
        # in there could be neither learned from nor written to afterwards.
        with torch.inference_mode(False), torch.no_grad():
            self._follow(param_groups)

    def _follow(self, param_groups: Sequence[Mapping[str, Any]]) -> None:
        names = [str(group["name"]) for group in param_groups]
        self.modulator.check_groups(names)
        old = self.layout
        device, dtype = home(param_groups)
        self.layout = Layout(param_groups, device, dtype)
        # What was told of each tensor or group is of others now.
        if self.layout.sizes != old.sizes or names != self.names:
            self.features = self.modulation = None
            self.learning.forget()
        if names != self.names:
            where = {name: i for i, name in enumerate(self.names)}
            before = [where.get(name) for name in names]
            self.learning.regroup(lambda: self.modulator.regroup(names, before), before)
            self.names = names
        if (device, dtype) == (old.device, old.dtype):
            return
        self.modulator.to(device, dtype)
        self.learning.to(device, dtype)
        self.device_steps, self.skipped = self.device_steps.to(device), self.skipped.to(device)
        if self.features is not None:
            self.features = self.features.to(device, dtype)
        if self.modulation is not None:
            self.modulation = Modulation(*(t.to(device, dtype) for t in self.modulation))

    # Checkpoints ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on: plain tensors, numbers and strings."""
        layout = self.layout
        matrix = layout.zero.expand(len(layout.sizes), len(self.table))
        features = matrix if self.features is None else self.features
        return {
            "features": [feature.name for feature in self.table],
            "architecture": dict(self.modulator.architecture),
            "modulator": {k: v.detach().clone() for k, v in self.modulator.state_dict().items()},
            "learning": self.learning.state_dict(layout),
            "steps": self.steps,
            "applied": self.learning.applied.clone(),
            "skipped": self.skipped.clone(),
            "held_features": features.clone(),
            "modulation": [factor.clone() for factor in self.last_modulation],
            "known": {
                "held_features": self.features is not None,
                "modulation": self.modulation is not None,
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a checked ``state_dict``."""
        own = self.layout.own
        self.modulator.load_state_dict(state["modulator"])
        self.learning.load_state_dict(state["learning"], self.layout)
        self.steps = state["steps"]
        self.device_steps.fill_(self.steps)
        self.learning.applied.copy_(state["applied"])
        self.skipped.copy_(state["skipped"])
        self.features = self.modulation = None
        if state["known"]["held_features"]:
            self.features = own(state["held_features"])
        if state["known"]["modulation"]:
            self.modulation = Modulation(*map(own, state["modulation"]))

    def restart_from(self, steps: int) -> None:
        """Take over the position of a run that had no modulator (an AdamW checkpoint)."""
        self.steps = steps
        self.device_steps.fill_(steps)
        self.features = self.modulation = None
        self.learning.restart_from(steps)
