"""An optimizer with a modulator beside it: its groups, what can be read of it, its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast, overload

from torch import Tensor
from torch.optim.optimizer import Optimizer

from metaadamw.checks import check_flag
from metaadamw.controller import Controller
from metaadamw.grouping.split import (
    free_name,
    name_all,
    one_per_tensor,
    with_or_without_names,
)
from metaadamw.grouping.validation import check_grads, check_param_group
from metaadamw.learning.base import LearningOptions
from metaadamw.learning.lookahead.uncertainty import PriorityUncertaintyWeighting
from metaadamw.modulators.base import Modulation, Modulator
from metaadamw.state import checkpoint
from metaadamw.state.readout import plain_numbers
from metaadamw.state.token import Token

__all__ = ["ModulatedOptimizer"]


class ModulatedOptimizer(Optimizer):
    """All of ``MetaAdamW`` but its construction, its step and its meta-updates."""

    _controller: Controller
    _split: str | None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, a new token; all that was learned stays.

        Raises:
            ValueError: a key one or two letters from one of ours, or a hyperparameter out of range.
        """
        if isinstance(param_group, dict):
            params = param_group.get("params")
            if params is not None and not isinstance(params, (Tensor, set)):
                param_group["params"] = list(params)  # a generator could be read only once
            param_group.pop(checkpoint.KEY, None)  # groups of another MetaAdamW
            names = self.group_names
            check_param_group(param_group, self.defaults, len(names), set(names))
            param_group.setdefault("name", free_name(len(names), set(names)))
            if self.param_groups:
                with_or_without_names(param_group, named="param_names" in self.param_groups[0])
            if self._controller is not None:
                self._controller.modulator.check_groups([*names, param_group["name"]])
        for group in one_per_tensor(param_group) if self._split else [param_group]:
            super().add_param_group(group)
        if self._controller is not None:
            self._controller.follow(self.param_groups)

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    @property
    def _followed(self) -> Controller:
        name_all(self.param_groups)  # somebody may have put others there
        self._controller.follow(self.param_groups)  # or the parameters may have moved
        return self._controller

    # What can be read ----------------------------------------------------------------------------

    @property
    def modulator(self) -> Modulator:
        """What says α and β: features [G, F] to ``Modulation``; differentiable."""
        return self._followed.modulator

    @property
    def learning(self) -> LearningOptions:
        """What moves the modulator, as it was chosen."""
        return self._controller.learning.options

    @property
    def weighting(self) -> PriorityUncertaintyWeighting | None:
        """The weights of the three terms (Eq. 13); None without look-ahead."""
        weighting: PriorityUncertaintyWeighting | None = self._followed.learning.weighting
        return weighting

    @property
    def group_names(self) -> list[str]:
        """Names of the groups, in the order of every [G] tensor."""
        name_all(self.param_groups)
        return [str(group["name"]) for group in self.param_groups]

    @property
    def feature_names(self) -> list[str]:
        """Names of the feature columns, in order."""
        return [feature.name for feature in self._controller.table]

    @property
    def modulation(self) -> Modulation:
        """The modulation of the last step, on the device; α = β = 1 before the first."""
        return self._followed.last_modulation

    @property
    def features(self) -> Tensor | None:
        """The features behind ``modulation``, [G, F]; None before the first step."""
        return self._followed.features

    @property
    def steps(self) -> int:
        """Completed training steps t."""
        return self._controller.steps

    @property
    def meta_update_due(self) -> bool:
        """Whether to call ``update_attention`` now: every so many steps after the warm-up.

        False again once it was called; always False where learning happens inside ``step()``.
        """
        return self._controller.learning.due(self.steps)

    @overload
    def metrics(self, *, as_float: Literal[False] = False) -> dict[str, Tensor | int | float]: ...

    @overload
    def metrics(self, *, as_float: Literal[True]) -> dict[str, int | float]: ...

    def metrics(self, *, as_float: bool = False) -> Mapping[str, Tensor | int | float]:
        """α and β of every group, the counts of meta-updates and the terms of the last, flat.

        Args:
            as_float: plain numbers, for what is written as JSON, in one read of the device. False:
                most values are 0-d tensors on the device, nothing is read back here.

        Raises:
            TypeError: ``as_float`` is no bool.
        """
        check_flag("as_float", as_float)
        lazy = self._followed.metrics()
        return plain_numbers(lazy) if as_float else lazy

    def group_features(self, grads: Sequence[Tensor | None] | None = None) -> Tensor:
        """The feature matrix [G, F] of the step about to be taken (Sec. 3.3).

        Args:
            grads: a gradient (or None) for each parameter, in the order of ``param_groups``;
                default the ``.grad`` of each.

        Raises:
            ValueError: the wrong number or shape of gradients.
        """
        if grads is not None:
            check_grads(grads, self._params())
        tokens = self._tokens(grads, maximize=self.defaults["maximize"])
        return self._followed.features_of(tokens)

    def _tokens(
        self, grads: Sequence[Tensor | None] | None = None, *, maximize: bool = False
    ) -> list[Token]:
        state = cast("dict[Tensor, dict[str, Any]]", self.state)
        if grads is None:
            return [Token.of(group, state, maximize=maximize) for group in self.param_groups]
        remaining = iter(grads)
        return [
            Token.of(group, state, [next(remaining) for _ in group["params"]], maximize=maximize)
            for group in self.param_groups
        ]

    # Checkpoints ---------------------------------------------------------------------------------

    def meta_state_dict(self) -> dict[str, Any]:
        """The learned part alone: modulator, what moves it, position."""
        controller = self._followed
        return checkpoint.versioned(controller.state_dict(), self.param_groups)

    def load_meta_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the result of ``meta_state_dict``.

        Raises:
            ValueError: another version, grouping, feature set, modulator or learning; nothing has
                changed.
        """
        checkpoint.check_fits(state, self.meta_state_dict())
        self._controller.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        """Moments and groups as in every torch optimizer, the learned part in the first group.

        Only plain tensors, numbers and strings: ``torch.load(..., weights_only=True)`` reads it.
        """
        carrier = checkpoint.carrier(self.param_groups)
        carrier[checkpoint.KEY] = self.meta_state_dict()  # before hooks see the result
        try:
            return super().state_dict()
        finally:
            carrier[checkpoint.KEY] = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a checkpoint of this optimizer, or the moments of ``torch.optim.AdamW``.

        Raises:
            ValueError: the groups, features or shapes do not fit; nothing has changed then.
        """
        with checkpoint.hooks_around(self, state_dict) as given:
            name_all(self.param_groups)
            adapted = checkpoint.adapt_param_groups(given, self.param_groups)
            learned = checkpoint.learned_part(adapted, self.meta_state_dict())
            super().load_state_dict(adapted)
            checkpoint.restore_moments(cast(Any, self.state), adapted, self._params())
            if learned is None:
                self._controller.restart_from(checkpoint.steps_taken(adapted))
            else:
                self._controller.load_state_dict(learned)

    def __getstate__(self) -> dict[str, Any]:
        """As in torch, and the learned part, which ``deepcopy`` and ``pickle`` would drop."""
        return {
            **super().__getstate__(),
            "_controller": self._controller,
            "_split": self._split,
        }
