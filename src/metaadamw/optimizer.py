"""``MetaAdamW``: AdamW with learning rate and weight decay modulated by a small Transformer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, ParamsT

from metaadamw import checkpoint
from metaadamw.adamw import choose_path, modulated_adamw
from metaadamw.config import MetaConfig, ModulatorConfig, check_count
from metaadamw.evaluation import LossFunction
from metaadamw.learner import Learner
from metaadamw.meta_update import MetaUpdate, warn_of_missed_update
from metaadamw.modulator import BaseModulator, Modulation
from metaadamw.placement import follow
from metaadamw.precision import full_precision
from metaadamw.replay import Schedule
from metaadamw.state import create_state, only_creates_state
from metaadamw.tokens import Token
from metaadamw.uncertainty import PriorityUncertaintyWeighting
from metaadamw.validation import (
    check_dense_gradients,
    check_flags,
    check_grads,
    check_hyperparameters,
    check_meta_update,
    check_param_group,
    check_type,
    free_name,
)

__all__ = ["MetaAdamW"]


class MetaAdamW(Optimizer):
    r"""AdamW with learning rate :math:`\eta\alpha_g` and decay :math:`\beta_g\lambda` per group.

    .. math:: \theta_t = \theta_{t-1} - \eta\alpha_g
              \left(\frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon} + \beta_g\lambda\theta_{t-1}\right)
              \qquad \text{(Eq. 4)}

    α and β come from a Transformer encoder that reads statistics of the groups, [G, F], and learns
    while the model trains: by ``update_attention`` every K steps (mode "lookahead", Algorithm 2) or
    inside ``step()`` from consecutive gradients (mode "online"). A new optimizer with
    ``init="identity"`` is AdamW, bit for bit, until the modulator has learned something. α and β
    are never written into ``group["lr"]`` or ``group["weight_decay"]``: those belong to you and to
    your scheduler.

    Args:
        params: parameters, named parameters or param groups, as for every torch optimizer; each
            param group is one token. ``fine_grained_groups`` makes the paper's groups.
        lr: learning rate η, a float or a one-element tensor.
        betas: decay rates of the moments.
        eps: ε.
        weight_decay: λ, decoupled.
        modulator: the modulator and its features, or a recorded ``Schedule`` to replay.
        meta: how the modulator learns; a schedule does not.
        total_steps: T of the time-step feature, if known.
        maximize: ascend instead of descend.
        foreach: update all tensors of a group at once. None: on devices where that is faster.
        fused: use torch's fused kernel; on a CPU ours, with its bits, or by default a for-loop's.
        capturable: keep step counters and factors on the device, for CUDA graphs.
        seed: seed of the modulator's initial weights.
        eps_inside_sqrt: the printed form :math:`\sqrt{\hat v_t + \epsilon}` of Eq. 4 instead of
            AdamW's :math:`\sqrt{\hat v_t} + \epsilon`.
        master_weights: keep bfloat16 parameters in float32, the lower half beside the moments.

    Raises:
        ValueError: a hyperparameter out of range, an unknown group key, an empty parameter list.
        TypeError: an argument of the wrong type, an unknown keyword.

    Example:
        >>> model = nn.Linear(4, 1)
        >>> optimizer = MetaAdamW(fine_grained_groups(model), meta=MetaConfig(mode="online"))
        >>> model(torch.randn(8, 4)).square().mean().backward()
        >>> optimizer.step()
        >>> optimizer.modulation.alpha
        tensor([1., 1.])

    Source: Zhao & Liu (2026), "A Self-Attentive Meta-Optimizer with Group-Adaptive Learning Rates
    and Weight Decay".
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        modulator: ModulatorConfig | Schedule | None = None,
        meta: MetaConfig | None = None,
        total_steps: int | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        seed: int = 0,
        eps_inside_sqrt: bool = False,
        master_weights: bool = False,
    ) -> None:
        modulator = ModulatorConfig() if modulator is None else modulator
        meta = MetaConfig() if meta is None else meta
        check_type("modulator", modulator, ModulatorConfig, Schedule)
        check_type("meta", meta, MetaConfig)
        check_type("params", params, Iterable)
        if total_steps is not None:
            check_count("total_steps", total_steps, 1)
        check_count("seed", seed, 0)
        defaults: dict[str, Any] = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
            "capturable": capturable,
            "master_weights": master_weights,
        }
        check_flags(defaults, eps_inside_sqrt)
        check_hyperparameters(defaults)
        self._learner: Learner | None = None
        super().__init__(params, defaults)
        if not self._params():
            raise ValueError("params must hold at least one parameter, got only empty groups")
        schedule = modulator if isinstance(modulator, Schedule) else None
        self._learner = Learner(
            self.param_groups,
            modulator if isinstance(modulator, ModulatorConfig) else ModulatorConfig(),
            meta if schedule is None else MetaConfig(mode="off", as_run=meta.as_run),
            schedule=schedule,
            total_steps=total_steps,
            seed=seed,
            eps_inside_sqrt=eps_inside_sqrt,
            capturable=capturable,
        )
        checkpoint.carrier(self.param_groups)[checkpoint.KEY] = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, a new token; all that was learned stays.

        Raises:
            ValueError: an unknown key, or a hyperparameter out of range.
        """
        if isinstance(param_group, dict):
            params = param_group.get("params")
            if params is not None and not isinstance(params, (Tensor, set)):
                param_group["params"] = list(params)  # a generator could be read only once
            param_group.pop(checkpoint.KEY, None)  # groups of another MetaAdamW
            names = self.group_names
            check_param_group(param_group, self.defaults, len(names), set(names))
            param_group.setdefault("name", free_name(len(names), set(names)))
            if self._learner is not None and self._learner.schedule is not None:
                self._learner.schedule.check_groups([*names, param_group["name"]])
        super().add_param_group(param_group)
        if self._learner is not None:
            follow(self._learner, self.param_groups)

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    @property
    def _learning(self) -> Learner:
        return cast(Learner, self._learner)  # None only while it is built

    @property
    def _followed(self) -> Learner:
        follow(self._learning, self.param_groups)  # the parameters may have moved
        return self._learning

    # What can be read ----------------------------------------------------------------------------

    @property
    def modulator(self) -> BaseModulator:
        """The attention module, features [G, F] to ``Modulation``; differentiable."""
        return self._followed.modulator

    @property
    def weighting(self) -> PriorityUncertaintyWeighting:
        """The weights of the three terms (Eq. 13)."""
        return self._followed.weighting

    @property
    def group_names(self) -> list[str]:
        """Names of the groups, in the order of every [G] tensor."""
        return [str(group["name"]) for group in self.param_groups]

    @property
    def feature_names(self) -> list[str]:
        """Names of the feature columns, in order."""
        return [feature.name for feature in self._learning.table]

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
        return self._learning.steps

    @property
    def meta_update_due(self) -> bool:
        """Whether to call ``update_attention`` now: every ``meta.every`` steps after the warm-up.

        False again once it was called; always False in the modes "online" and "off".
        """
        return self._learning.due

    def metrics(self) -> dict[str, Tensor | int | float]:
        """α and β of every group, the counts of meta-updates and the terms of the last, flat.

        For any logger: most values are 0-d tensors on the device, nothing is read back here.
        """
        return self._followed.metrics(self.group_names)

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
        return self._learning.compute_features(tokens)

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

    # The step ------------------------------------------------------------------------------------

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One MetaAdamW step (Algorithm 1).

        Args:
            closure: re-evaluates the model and returns the loss; optional.

        Returns:
            The closure's loss, or None.

        Raises:
            ValueError: a sparse gradient; nothing has changed then.
        """
        with torch.enable_grad():
            loss = None if closure is None else closure()
        with torch.no_grad():
            self._step()
        return loss

    @torch._disable_dynamo  # type: ignore[attr-defined]  # traced, it is compiled at every step
    def _step(self) -> None:
        params = self._params()
        check_dense_gradients(params)
        if all(p.grad is None for p in params):
            return
        learner = self._followed
        only_state = not self.state and only_creates_state(self.param_groups, learner.layout.shards)
        create_state(self.param_groups, self.state, windows=learner.meta.window > 1)
        if only_state:
            return
        if self.meta_update_due:
            warn_of_missed_update()
        with full_precision(learner.layout.device):
            tokens = self._tokens(maximize=self.defaults["maximize"])
            stepped = modulated_adamw(  # lines 4–7
                tokens,
                learner.modulate(tokens),  # lines 2–3
                choose_path(params, foreach=self.defaults["foreach"], fused=self.defaults["fused"]),
                on_host=learner.on_host,
                eps_inside_sqrt=learner.eps_inside_sqrt,
                capturable=self.defaults["capturable"],
                decay_corrected_at=learner.decay_corrected_at,
                squares=learner.asks_for_squares,
            )
            learner.stepped(tokens, *stepped)

    # Meta-learning -------------------------------------------------------------------------------

    def update_attention(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        batch1: Any = None,
        batch2: Any = None,
        val_batch: Any = None,
        *,
        training_loss: Tensor | float | None = None,
    ) -> MetaUpdate:
        """One meta-update of the modulator (Algorithm 2).

        Leaves parameters, buffers, ``.grad``, flags, moments and random streams as they were, to
        the last bit, also when ``loss_fn`` raises.

        Args:
            model: the model, passed on to ``loss_fn``; under DDP the wrapped one.
            loss_fn: ``loss_fn(model, batch)`` -> scalar loss with a graph.
            batch1: training batch B1, of the hypothetical step. None with ``training_loss``.
            batch2: training batch B2, of the gradient after it (objectives "gradient_alignment"
                and "combined").
            val_batch: validation batch (objectives "loss_decrease", "generalization_gap" and
                "combined").
            training_loss: the loss whose gradients are in ``.grad`` now. They then serve as those
                on B1, which saves a forward and backward pass; call it between ``backward()`` and
                ``step()``.

        Returns:
            The terms, the modulation they were taken at, and whether it was applied, or why not.

        Raises:
            ValueError: a batch is missing; the loss is no scalar, detached, or of other parameters.
            TypeError: ``model`` is no module, or ``loss_fn`` cannot be called.
            RuntimeError: the mode is not "lookahead"; ``hvp="exact"`` without a second derivative.

        Example:
            >>> if optimizer.meta_update_due:
            ...     update = optimizer.update_attention(model, loss_fn, batch1, batch2, val_batch)
        """
        check_meta_update(self._learning.meta.mode, model, loss_fn)
        return self._learning.update(
            model,
            loss_fn,
            {"batch1": batch1, "batch2": batch2, "val_batch": val_batch},
            self.param_groups,
            self._tokens,
            training_loss=training_loss,
            maximize=self.defaults["maximize"],
        )

    # Checkpoints ---------------------------------------------------------------------------------

    def meta_state_dict(self) -> dict[str, Any]:
        """The learned part alone: modulator, log-variances, meta-optimizer, position."""
        return self._learning.state_dict(self.param_groups)

    def load_meta_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the result of ``meta_state_dict``.

        Raises:
            ValueError: another version, grouping, feature set or modulator; nothing has changed.
        """
        checkpoint.check_fits(state, self.meta_state_dict())
        self._learning.load_state_dict(state)

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
            adapted = checkpoint.adapt_param_groups(given, self.param_groups)
            learned = checkpoint.learned_part(adapted, self.meta_state_dict())
            super().load_state_dict(adapted)
            checkpoint.restore_moments(cast(Any, self.state), adapted, self._params())
            if learned is None:
                self._learning.restart_from(checkpoint.steps_taken(adapted))
            else:
                self._learning.load_state_dict(learned)

    def __getstate__(self) -> dict[str, Any]:
        """As in torch, and the learned part, which ``deepcopy`` and ``pickle`` would drop."""
        return {**super().__getstate__(), "_learner": self._learner}
