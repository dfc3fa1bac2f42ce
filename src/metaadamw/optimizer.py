"""``MetaAdamW``: AdamW that learns a learning rate and a weight decay for each param group."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from metaadamw.checks import check_choice, check_count, check_type
from metaadamw.choices import chosen
from metaadamw.controller import Controller
from metaadamw.grouping.split import (
    hint_at_groups,
)
from metaadamw.grouping.validation import (
    check_dense_gradients,
    check_flags,
    check_hyperparameters,
)
from metaadamw.learning.lookahead.evaluation import LossFunction
from metaadamw.learning.lookahead.meta_update import MetaUpdate
from metaadamw.modulated import ModulatedOptimizer
from metaadamw.state import checkpoint
from metaadamw.state.moments import create_state, only_creates_state
from metaadamw.state.precision import full_precision
from metaadamw.state.transaction import all_or_nothing
from metaadamw.update.adamw import choose_path, modulated_adamw

__all__ = ["MetaAdamW"]


class MetaAdamW(ModulatedOptimizer):
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
