"""``MetaAdamW``: AdamW that learns a learning rate and a weight decay for each param group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, cast, overload

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, ParamsT

from metaadamw.checks import check_choice, check_count, check_flag, check_type
from metaadamw.choices import chosen
from metaadamw.controller import Controller
from metaadamw.grouping.split import (
    free_name,
    hint_at_groups,
    name_all,
    one_per_tensor,
    with_or_without_names,
)
from metaadamw.grouping.validation import (
    check_dense_gradients,
    check_flags,
    check_grads,
    check_hyperparameters,
    check_param_group,
)
from metaadamw.learning.base import LearningOptions
from metaadamw.learning.lookahead.evaluation import LossFunction
from metaadamw.learning.lookahead.meta_update import MetaUpdate
from metaadamw.learning.lookahead.uncertainty import PriorityUncertaintyWeighting
from metaadamw.modulators.base import Modulation, Modulator
from metaadamw.state import checkpoint
from metaadamw.state.moments import create_state, only_creates_state
from metaadamw.state.precision import full_precision
from metaadamw.state.readout import plain_numbers
from metaadamw.state.token import Token
from metaadamw.state.transaction import all_or_nothing
from metaadamw.update.adamw import choose_path, modulated_adamw

__all__ = ["MetaAdamW"]


class MetaAdamW(Optimizer):
    r"""AdamW with learning rate :math:`\eta\alpha_g` and decay :math:`\beta_g\lambda` per group.

    .. math:: \theta_t = \theta_{t-1} - \eta\alpha_g
              \left(\frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon} + \beta_g\lambda\theta_{t-1}\right)
              \qquad \text{(Eq. 4)}

    A modulator says α and β of each group, and learns while the model trains; by default inside
    ``step()``, from the training gradients. A new optimizer is AdamW, bit for bit, until it has
    learned something. α and β are never written into ``group["lr"]`` or ``group["weight_decay"]``:
    those belong to you and to your scheduler.

    ``modulator`` and ``learning`` are names, dicts of plain values such as ``{"kind": "attention",
    "layers": 2}``, or objects. One of them alone is enough: ``learning="lookahead"`` is the paper's
    method with the paper's modulator.

    Args:
        params: parameters, named parameters or param groups, as for every torch optimizer; each
            param group has an α and a β. ``fine_grained_groups`` makes the paper's groups.
        lr: learning rate η, a float or a one-element tensor.
        betas: decay rates of the moments.
        eps: ε.
        weight_decay: λ, decoupled.
        modulator: who says α and β: "factors" (``Factors``), "attention" (``Attention``) or a
            recorded ``Schedule``. None: the one that goes with ``learning``.
        learning: what moves the modulator: "two_horizons" (``TwoHorizons``), "hypergradient"
            (``Hypergradient``), "windows" (``Windows``), "lookahead" (``LookAhead``) or "off"
            (``Off``). None: the one that goes with ``modulator``.
        statistics: "current": factors of a step follow from statistics of its own gradient.
        split: "tensor" makes each given group one per tensor, where ``params`` is all one can give.
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
        ValueError: a hyperparameter out of range, a choice that does not exist or does not go with
            the other, an empty parameter list.
        TypeError: an argument of the wrong type, an unknown keyword.

    Example:
        >>> model = nn.Linear(4, 1)
        >>> optimizer = MetaAdamW(fine_grained_groups(model))
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
        modulator: Any = None,
        learning: Any = None,
        statistics: str = "current",
        split: str | None = None,
        total_steps: int | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        seed: int = 0,
        eps_inside_sqrt: bool = False,
        master_weights: bool = False,
    ) -> None:
        kind, way = chosen(modulator, learning)
        check_type("params", params, Iterable)
        check_choice("statistics", statistics, ("current",))
        if split is not None:
            check_choice("split", split, ("tensor",))
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
        self._split, self._controller = split, cast(Controller, None)  # None while it is built
        super().__init__(params, defaults)
        if not self._params():
            raise ValueError("params must hold at least one parameter, got only empty groups")
        self._controller = Controller(
            self.param_groups,
            kind,
            way,
            total_steps=total_steps,
            seed=seed,
            eps_inside_sqrt=eps_inside_sqrt,
            capturable=capturable,
        )
        checkpoint.carrier(self.param_groups)[checkpoint.KEY] = None

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
        controller = self._followed
        layout, learning = controller.layout, controller.learning
        first = not self.state
        only_state = first and only_creates_state(self.param_groups, layout.shards)
        if self.meta_update_due and not only_state:
            learning.warn_of_missed_update()
        if first and learning.optimizers:
            hint_at_groups(self.param_groups)
        state = cast("dict[Tensor, dict[str, Any]]", self.state)
        objects, tensors = controller.written()
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            full_precision(layout.device),
            all_or_nothing(objects, [state, *state.values()], tensors),
        ):
            create_state(self.param_groups, state)
            learning.prepare(layout, state)
            if only_state:
                return
            tokens = self._tokens(maximize=self.defaults["maximize"])
            step = controller.step(tokens, state)
            stepped = modulated_adamw(  # lines 4–7
                tokens,
                *controller.modulate(step)[:2],  # lines 2–3
                choose_path(params, foreach=self.defaults["foreach"], fused=self.defaults["fused"]),
                on_host=controller.on_host,
                eps_inside_sqrt=controller.eps_inside_sqrt,
                capturable=self.defaults["capturable"],
                decay_corrected_at=controller.decay_corrected_at,
                squares=controller.asks_for_squares,
            )
            controller.stepped(step, *stepped)

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

        Leaves parameters, moments, random streams (which threads share), and the buffers, ``.grad``
        and flags of all modules that run as they were to the last bit, even if ``loss_fn`` raises.

        Args:
            model: the model, passed on to ``loss_fn``; under DDP the wrapped one.
            loss_fn: ``loss_fn(model, batch)`` -> scalar loss with a graph; None for a batch to be
                left out, which skips the meta-update.
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
            RuntimeError: it does not learn by look-ahead; no second derivative for ``hvp="exact"``.

        Example:
            >>> if optimizer.meta_update_due:
            ...     update = optimizer.update_attention(model, loss_fn, batch1, batch2, val_batch)
        """
        controller = self._followed
        update: MetaUpdate = controller.learning.update(
            model,
            loss_fn,
            {"batch1": batch1, "batch2": batch2, "val_batch": val_batch},
            params=self._params(),
            steps=controller.steps,
            layout=controller.layout,
            tokens_of=self._tokens,
            features_of=controller.features_of,
            training_loss=training_loss,
            maximize=self.defaults["maximize"],
        )
        controller.skipped += int(not update.applied)
        return update

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
