"""``MetaAdamW``: AdamW whose learning rate and weight decay are modulated per param group by a small Transformer."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, ParamsT

from metaadamw import checkpoint
from metaadamw.adamw import AdamWFunction, adamw_foreach, adamw_fused, adamw_plain
from metaadamw.config import MetaConfig, ModulatorConfig, check_count, check_flag, check_number
from metaadamw.evaluation import LossFunction
from metaadamw.features import EMBEDDING_DIM, Layout, feature_table, group_features
from metaadamw.meta_optimizer import MetaOptimizer
from metaadamw.meta_update import MetaUpdate, check_batches, meta_gradient
from metaadamw.modulator import Modulation, Modulator
from metaadamw.online import LastStep, modulator_gradient, online_signal
from metaadamw.replay import Schedule
from metaadamw.tokens import Token, moment_dtype
from metaadamw.uncertainty import PriorityUncertaintyWeighting

__all__ = ["MetaAdamW"]

_HYPERPARAMETERS = ("lr", "betas", "eps", "weight_decay")
_SHARED = ("maximize", "foreach", "fused", "capturable")
_DESCRIPTION = ("params", "param_names", "name", "layer_type", "depth_bucket", "depth", "is_bias")
# Keys that torch's own schedulers keep in a group.
_SCHEDULER = ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr")
_GROUP_KEYS = (*_DESCRIPTION, *_HYPERPARAMETERS, *_SHARED, *_SCHEDULER)
_FOREACH_DEVICES = ("cuda", "xpu", "mtia")


class MetaAdamW(Optimizer):
    r"""AdamW with a learning rate :math:`\eta\alpha_g` and weight decay :math:`\beta_g\lambda` for each param group g.

    .. math:: \theta_t = \theta_{t-1} - \eta\alpha_g\left(\frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon}
              + \beta_g\lambda\theta_{t-1}\right) \qquad \text{(Eq. 4)}

    α and β come from a Transformer encoder that reads statistics of the groups, [G, F], and learns while the model trains:
    by ``update_attention`` every K steps (mode "lookahead", Algorithm 2) or inside ``step()`` from consecutive gradients (mode "online").
    A new optimizer with ``init="identity"`` is AdamW, bit for bit, until the modulator has learned something. α and β are never
    written into ``group["lr"]`` or ``group["weight_decay"]``: those belong to you and to your scheduler.

    Args:
        params: parameters, named parameters or param groups, as for every torch optimizer; each param group is one token. See
            ``fine_grained_groups`` for the paper's grouping.
        lr: learning rate η, a float or a one-element tensor.
        betas: decay rates of the moments.
        eps: ε.
        weight_decay: λ, decoupled.
        modulator: the modulator and its features, or a recorded ``Schedule`` to replay without learning.
        meta: how the modulator learns.
        total_steps: T of the time-step feature, if known.
        maximize: ascend instead of descend.
        foreach: update all tensors of a group at once. None: on devices where that is faster.
        fused: use torch's fused kernel.
        capturable: keep the step counters on the device, for CUDA graphs.
        seed: seed of the modulator's initial weights.
        eps_inside_sqrt: the printed form :math:`\sqrt{\hat v_t + \epsilon}` of Eq. 4 instead of AdamW's :math:`\sqrt{\hat v_t} + \epsilon`.

    Raises:
        ValueError: a hyperparameter out of range, an unknown key in a group, an empty parameter list.
        TypeError: an argument of the wrong type, an unknown keyword.

    Example:
        >>> model = nn.Linear(4, 1)
        >>> optimizer = MetaAdamW(fine_grained_groups(model), lr=1e-3, meta=MetaConfig(mode="online"))
        >>> model(torch.randn(8, 4)).square().mean().backward()
        >>> optimizer.step()
        >>> optimizer.modulation.alpha
        tensor([1., 1.])

    Source: Zhao & Liu (2026), "A Self-Attentive Meta-Optimizer with Group-Adaptive Learning Rates and Weight Decay".
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
    ) -> None:
        modulator = ModulatorConfig() if modulator is None else modulator
        meta = MetaConfig() if meta is None else meta
        if not isinstance(modulator, (ModulatorConfig, Schedule)):
            raise TypeError(f"modulator must be a ModulatorConfig or a Schedule, got {modulator!r}")
        if not isinstance(meta, MetaConfig):
            raise TypeError(f"meta must be a MetaConfig, got {meta!r}")
        if total_steps is not None:
            check_count("total_steps", total_steps, 1)
        check_count("seed", seed, 0)
        for name, flag in (("maximize", maximize), ("capturable", capturable), ("eps_inside_sqrt", eps_inside_sqrt)):
            check_flag(name, flag)
        for name, choice in (("foreach", foreach), ("fused", fused)):
            if choice is not None:
                check_flag(name, choice)
        if foreach and fused:
            raise ValueError("foreach and fused must not both be True")
        if fused and eps_inside_sqrt:
            raise ValueError("eps_inside_sqrt=True is not available with fused=True")

        self.modulator_config = modulator if isinstance(modulator, ModulatorConfig) else ModulatorConfig()
        self.meta_config = MetaConfig(mode="off") if isinstance(modulator, Schedule) else meta
        self.schedule = modulator if isinstance(modulator, Schedule) else None
        self.total_steps, self.seed, self.eps_inside_sqrt = total_steps, seed, eps_inside_sqrt
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
            "capturable": capturable,
        }
        _check_hyperparameters(defaults, "")
        super().__init__(params, defaults)
        self._build()

    def _build(self) -> None:
        """Modulator, weighting and meta-optimizer for the groups as they are."""
        params = self._params()
        if not params:
            raise ValueError("params must hold at least one parameter, got only empty groups")
        dtype = torch.float64 if any(p.dtype in (torch.float64, torch.complex128) for p in params) else torch.float32
        device = params[0].device
        self._table = feature_table(self.modulator_config)
        self._layout = Layout(self.param_groups, device, dtype)
        self.modulator = Modulator(
            len(self._table),
            len(self.param_groups),
            self.modulator_config,
            embedding_dim=EMBEDDING_DIM.get(self.modulator_config.features, 0),
            seed=self.seed,
            device=device,
            dtype=dtype,
        )
        bound = self.meta_config.log_variance_bound
        self.weighting = PriorityUncertaintyWeighting(
            self.meta_config.priorities, bound=bound, device=device, dtype=dtype
        )
        self._meta_optimizer = MetaOptimizer(
            cast(Any, self.meta_config.optimizer), cast(float, self.meta_config.lr)
        )
        self._steps = 0
        self._device_step = torch.zeros((), device=device, dtype=torch.float32)
        self._last_meta_step = 0
        self._applied = torch.zeros((), device=device, dtype=torch.long)
        self._skipped = torch.zeros((), device=device, dtype=torch.long)
        self._features: Tensor | None = None
        self._modulation: Modulation | None = None
        self._last: LastStep | None = None
        self._hvp = self.meta_config.hvp
        if self.schedule is not None:
            self.schedule.check_groups(self.group_names)

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, a new token; what was learned and the moments of the others stay.

        Raises:
            ValueError: an unknown key, or a hyperparameter out of range.
        """
        if isinstance(param_group, dict):
            _check_group(param_group, self.defaults, len(self.param_groups))
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        taken = {g.get("name") for g in self.param_groups[:-1]}
        name = group.setdefault("name", f"group{len(self.param_groups) - 1}")
        if name in taken:
            self.param_groups.pop()
            raise ValueError(f"param_group['name'] must be unique, got {name!r} a second time")
        if "modulator" in self.__dict__:  # not during construction
            self._layout = Layout(self.param_groups, self._layout.device, self._layout.dtype)
            self.modulator.grow(len(self.param_groups))
            self._features = self._modulation = self._last = None

    # What can be read ------------------------------------------------------------------------------------------------

    @property
    def group_names(self) -> list[str]:
        """Names of the groups, in the order of every [G] tensor."""
        return [str(group["name"]) for group in self.param_groups]

    @property
    def feature_names(self) -> list[str]:
        """Names of the feature columns, in order."""
        return [feature.name for feature in self._table]

    @property
    def modulation(self) -> Modulation:
        """The modulation of the last step, on the device; α = β = 1 before the first."""
        if self._modulation is not None:
            return self._modulation
        ones = torch.ones(len(self.param_groups), device=self._layout.device, dtype=self._layout.dtype)
        return Modulation(ones, ones.clone(), ones / 2, ones / 2)

    @property
    def features(self) -> Tensor | None:
        """The features that the last modulation was computed from, [G, F]; None before the first step."""
        return self._features

    @property
    def steps(self) -> int:
        """Completed training steps t."""
        return self._steps

    @property
    def meta_update_due(self) -> bool:
        """Whether ``update_attention`` should be called now: every ``meta.every`` steps from ``meta.warmup_steps`` on.

        False again once it was called; always False in the modes "online" and "off".
        """
        config = self.meta_config
        return (
            config.mode == "lookahead"
            and self._steps > self._last_meta_step
            and self._steps >= config.warmup_steps
            and self._steps % config.every == 0
        )

    def metrics(self) -> dict[str, Tensor | int]:
        """α and β of every group and the counts of meta-updates, flat, for any logger.

        The values are 0-d tensors on the device: nothing is read back until the logger does.
        """
        modulation = self.modulation
        result: dict[str, Tensor | int] = {}
        for i, name in enumerate(self.group_names):
            result[f"{name}/alpha"] = modulation.alpha[i]
            result[f"{name}/beta"] = modulation.beta[i]
        result["meta/steps"] = self._steps
        result["meta/applied"] = self._applied.clone()
        result["meta/skipped"] = self._skipped.clone()
        return result

    def group_features(self, grads: Sequence[Tensor | None] | None = None) -> Tensor:
        """The feature matrix [G, F] of the step about to be taken (Sec. 3.3).

        Args:
            grads: one gradient (or None) for each parameter, in the order of ``param_groups``; default the ``.grad`` of each.

        Raises:
            ValueError: the wrong number or shape of gradients.
        """
        if grads is not None:
            params = self._params()
            if len(grads) != len(params):
                raise ValueError(f"grads must hold one entry for each of {len(params)} parameters, got {len(grads)}")
            for i, (grad, param) in enumerate(zip(grads, params, strict=True)):
                if grad is not None and grad.shape != param.shape:
                    raise ValueError(f"grads[{i}] must have shape {tuple(param.shape)}, got {tuple(grad.shape)}")
        return self._compute_features(self._tokens(grads))

    # The step --------------------------------------------------------------------------------------------------------

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One MetaAdamW step (Algorithm 1).

        Args:
            closure: re-evaluates the model and returns the loss; optional.

        Returns:
            The closure's loss, or None.

        Raises:
            ValueError: a sparse gradient; nothing has changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            self._step()
        return loss

    def _step(self) -> None:
        params = self._params()
        for param in params:
            if param.grad is not None and param.grad.is_sparse:
                raise ValueError(
                    f"gradients must be dense, got a sparse one for a parameter of shape {tuple(param.shape)}; "
                    "construct nn.Embedding with sparse=False"
                )
        if all(p.grad is None for p in params):
            return
        if not self.state and self._only_creates_state(params):
            self._create_state()
            return
        self._create_state()
        tokens = self._tokens()
        config = self.meta_config
        refresh = self._modulation is None or self._steps % self.modulator_config.update_every == 0
        if refresh:
            if config.mode == "online" and self._steps >= config.warmup_steps:
                self._learn_online(tokens)
            self._modulate(tokens)
        self._apply(tokens)
        self._steps += 1
        self._device_step += 1

    @staticmethod
    def _zero_lr(lr: float | Tensor) -> bool:
        return float(lr) == 0.0

    def _only_creates_state(self, params: Sequence[Tensor]) -> bool:
        """Distributed checkpointing takes a step with lr = 0 and zero gradients to create state: training must not see it."""
        return all(self._zero_lr(group["lr"]) for group in self.param_groups) and not any(
            bool(p.grad.any()) for p in params if p.grad is not None
        )

    def _create_state(self) -> None:
        on_device = self.defaults["capturable"] or self.defaults["fused"]
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None or self.state[param]:
                    continue
                self.state[param] = {
                    "step": torch.zeros((), dtype=torch.float32, device=param.device if on_device else "cpu"),
                    "exp_avg": torch.zeros_like(param, dtype=moment_dtype(param), memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(param, dtype=moment_dtype(param), memory_format=torch.preserve_format),
                }

    def _tokens(self, grads: Sequence[Tensor | None] | None = None, *, turn: bool = True) -> list[Token]:
        """The groups' tensors; ``turn``: negate the gradients where the optimizer maximises."""
        maximize = turn and self.defaults["maximize"]
        state = cast(dict[Tensor, dict[str, Any]], self.state)
        if grads is None:
            return [Token.of(group, state, maximize=maximize) for group in self.param_groups]
        tokens, start = [], 0
        for group in self.param_groups:
            stop = start + len(group["params"])
            tokens.append(Token.of(group, state, list(grads[start:stop]), maximize=maximize))
            start = stop
        return tokens

    def _compute_features(self, tokens: Sequence[Token]) -> Tensor:
        if not self._layout.fits(self.param_groups):
            self._layout = Layout(self.param_groups, self._layout.device, self._layout.dtype)
        step = self._device_step + 1 if self.defaults["capturable"] else self._steps + 1
        return group_features(tokens, self._table, self._layout, step, self.total_steps)

    def _modulate(self, tokens: Sequence[Token]) -> None:
        """Lines 2–3 of Algorithm 1."""
        if self.schedule is not None:
            self._modulation = self.schedule.at(self._steps, self._layout.device, self._layout.dtype)
            return
        features = self._compute_features(tokens)
        finite = torch.isfinite(features).all()
        held = torch.zeros_like(features) if self._features is None else self._features
        # A non-finite gradient must not reach the modulator: it sees the last finite features once more.
        self._features = torch.where(finite, features, held)
        self._skipped += ~finite
        self._modulation = self.modulator(self._features)

    def _learn_online(self, tokens: Sequence[Token]) -> None:
        """One update of the modulator from the step before and the gradient that followed it."""
        if self._last is None:
            return
        config = self.meta_config
        signals = online_signal(tokens, self._last, self._layout, eps_inside_sqrt=self.eps_inside_sqrt)
        sparsity = config.weight_decay if config.gate_sparsity is None else config.gate_sparsity
        learned = self._learned()
        gradient = modulator_gradient(
            self.modulator, self._last.features, *signals, learned, config.weight_decay, sparsity
        )
        ok = torch.stack([torch.isfinite(t).all() for t in (*signals, *gradient)]).all()
        self._meta_optimizer.step(learned, gradient, ok)
        self._applied += ok
        self._skipped += ~ok

    def _learned(self) -> list[Tensor]:
        """What the meta-optimizer moves."""
        frozen = "frozen_gates" in self.meta_config.as_run
        learned: list[Tensor] = [
            p for name, p in self.modulator.named_parameters() if not (frozen and name == "gate_logits")
        ]
        return [*learned, *self.weighting.parameters()]

    def _apply(self, tokens: Sequence[Token]) -> None:
        """Lines 4–7 of Algorithm 1: Eqs. 1–4 with η α_g and β_g λ."""
        modulation = self.modulation
        # On the CPU numbers are free to read; on an accelerator they stay tensors.
        on_host = self._layout.device.type == "cpu" and not self.defaults["capturable"]
        alphas = modulation.alpha.tolist() if on_host else modulation.alpha.unbind()
        betas = modulation.beta.tolist() if on_host else modulation.beta.unbind()
        function = self._function()
        rates, decays = [], []
        for token, alpha, beta in zip(tokens, alphas, betas, strict=True):
            group = token.group
            lr, decay = group["lr"], group["weight_decay"]
            if isinstance(lr, Tensor) and on_host and function is not adamw_plain:
                lr = lr.item()
            if "bias_corrected_decay" in self.meta_config.as_run:
                decay = decay / (1 - group["betas"][0] ** (self._steps + 1))
            rates.append(lr * alpha)
            decays.append(decay * beta if decay else 0.0)
            self._update(function, token, rates[-1], decays[-1])
        if self.meta_config.mode == "online":
            assert self._features is not None
            moved = tuple(g is not None for token in tokens for g in token.grads)
            self._last = LastStep(self._features, self._vector(rates), self._vector(decays), moved)

    def _vector(self, numbers: Sequence[float | Tensor]) -> Tensor:
        layout = self._layout
        if all(isinstance(n, float) for n in numbers):
            return torch.tensor(numbers, device=layout.device, dtype=layout.dtype)
        return torch.stack([torch.as_tensor(n, device=layout.device).to(layout.dtype) for n in numbers])

    def _function(self) -> AdamWFunction:
        if self.defaults["fused"]:
            return adamw_fused
        foreach = self.defaults["foreach"]
        if foreach is None:
            foreach = all(p.device.type in _FOREACH_DEVICES for p in self._params())
        return adamw_foreach if foreach else adamw_plain

    def _update(
        self, function: AdamWFunction, token: Token, lr: float | Tensor, weight_decay: float | Tensor
    ) -> None:
        """Eqs. 1–4 for one group, in buckets of one device and precision."""
        buckets: dict[tuple[torch.device, torch.dtype], list[tuple[Any, ...]]] = {}
        for entry in zip(token.params, token.grads, token.exp_avgs, token.exp_avg_sqs, token.steps, strict=True):
            if entry[1] is not None:
                buckets.setdefault((entry[0].device, entry[0].dtype), []).append(entry)
        for (device, dtype), entries in buckets.items():
            params, grads, exp_avgs, exp_avg_sqs, steps = (list(column) for column in zip(*entries, strict=True))
            targets = params
            if dtype in (torch.bfloat16, torch.float16):  # computed in the precision of the moments
                params, grads = [p.float() for p in params], [g.float() for g in grads]
            function(
                params,
                grads,
                exp_avgs,
                exp_avg_sqs,
                steps,
                lr=lr.to(device) if isinstance(lr, Tensor) and lr.device.type != "cpu" else lr,
                weight_decay=weight_decay.to(device) if isinstance(weight_decay, Tensor) else weight_decay,
                betas=token.group["betas"],
                eps=token.group["eps"],
                eps_inside_sqrt=self.eps_inside_sqrt,
                capturable=self.defaults["capturable"],
            )
            if targets is not params:
                torch._foreach_copy_(targets, params)

    # Meta-learning ---------------------------------------------------------------------------------------------------

    def update_attention(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        batch1: Any = None,
        batch2: Any = None,
        val_batch: Any = None,
    ) -> MetaUpdate:
        """One meta-update of the modulator (Algorithm 2).

        Leaves parameters, buffers, ``.grad``, flags, moments and random streams as they were, to the last bit, also when ``loss_fn`` raises.

        Args:
            model: the model, passed on to ``loss_fn``.
            loss_fn: ``loss_fn(model, batch)`` -> scalar loss with a graph.
            batch1: training batch B1, of the hypothetical step.
            batch2: training batch B2, of the gradient after it (objectives "gradient_alignment" and "combined").
            val_batch: validation batch (objectives "loss_decrease", "generalization_gap" and "combined").

        Returns:
            The terms, the modulation they were taken at, and whether the update was applied or skipped and why.

        Raises:
            ValueError: a batch is missing; the loss is no scalar, detached, or of other parameters.
            RuntimeError: the mode is not "lookahead"; or ``hvp="exact"`` and the model has no second derivative.
        """
        if self.meta_config.mode != "lookahead":
            raise RuntimeError(f"update_attention needs meta.mode='lookahead', got {self.meta_config.mode!r}")
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if not callable(loss_fn):
            raise TypeError(f"loss_fn must be callable as loss_fn(model, batch), got {loss_fn!r}")
        batches = {"batch1": batch1, "batch2": batch2, "val_batch": val_batch}
        check_batches(self.meta_config, batches)
        learned = self._learned()
        result = meta_gradient(
            model=model,
            loss_fn=loss_fn,
            batches=batches,
            params=self._params(),
            tokens_of=lambda grads: self._tokens(grads, turn=False),
            features_of=self._compute_features,
            modulator=self.modulator,
            weighting=self.weighting,
            learned=learned,
            layout=self._layout,
            config=self.meta_config,
            hvp=self._hvp,
            maximize=self.defaults["maximize"],
            eps_inside_sqrt=self.eps_inside_sqrt,
        )
        if self._hvp == "auto" and result.report.hvp is not None:
            self._hvp = result.report.hvp  # found out once
        if result.grads is not None:
            ok = torch.ones((), dtype=torch.bool, device=self._layout.device)
            self._meta_optimizer.step(learned, result.grads, ok)
        self._applied += int(result.report.applied)
        self._skipped += int(not result.report.applied)
        self._last_meta_step = self._steps
        return result.report

    # Checkpoints -----------------------------------------------------------------------------------------------------

    def meta_state_dict(self) -> dict[str, Any]:
        """The learned part alone, plain tensors: modulator, log-variances, meta-optimizer, position in the schedule."""
        state: dict[str, Any] = {
            "version": checkpoint.VERSION,
            "features": self.feature_names,
            "groups": checkpoint.group_signature(self.param_groups),
            "modulator": {k: v.detach().clone() for k, v in self.modulator.state_dict().items()},
            "raw_log_variances": self.weighting.raw_log_variances.detach().clone(),
            "meta_optimizer": self._meta_optimizer.state_dict(),
            "steps": self._steps,
            "last_meta_step": self._last_meta_step,
            "applied": self._applied.clone(),
            "skipped": self._skipped.clone(),
        }
        if self._features is not None:
            state["held_features"] = self._features.clone()
        if self._modulation is not None:
            state["modulation"] = [factor.detach().clone() for factor in self._modulation]
        if self._last is not None:
            features, rates, decays, moved = self._last
            state["last_step"] = [features.clone(), rates.clone(), decays.clone(), list(moved)]
        return state

    def load_meta_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the result of ``meta_state_dict``.

        Raises:
            ValueError: another version, grouping, feature set or modulator; nothing has changed then.
        """
        checkpoint.check_learned(
            state,
            groups=checkpoint.group_signature(self.param_groups),
            features=self.feature_names,
            modulator=self.modulator.state_dict(),
        )

        def ours(tensor: Tensor) -> Tensor:
            return tensor.detach().to(device=self._layout.device, dtype=self._layout.dtype, copy=True)

        with torch.no_grad():
            self.modulator.load_state_dict(state["modulator"])
            self.weighting.raw_log_variances.copy_(state["raw_log_variances"])
        self._meta_optimizer.load_state_dict(state["meta_optimizer"], self._learned())
        self._steps = state["steps"]
        self._device_step.fill_(self._steps)
        self._last_meta_step = state["last_meta_step"]
        self._applied.copy_(state["applied"])
        self._skipped.copy_(state["skipped"])
        self._features = ours(state["held_features"]) if "held_features" in state else None
        self._modulation = Modulation(*map(ours, state["modulation"])) if "modulation" in state else None
        self._last = None
        if "last_step" in state:
            features, rates, decays, moved = state["last_step"]
            self._last = LastStep(ours(features), ours(rates), ours(decays), tuple(moved))

    def state_dict(self) -> dict[str, Any]:
        """Moments and groups as in every torch optimizer, and the learned part under the key "metaadamw".

        Only plain tensors, numbers and strings: ``torch.load(..., weights_only=True)`` reads it.
        """
        return {**super().state_dict(), checkpoint.KEY: self.meta_state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a checkpoint of this optimizer, or the moments of a ``torch.optim.AdamW`` checkpoint.

        Raises:
            ValueError: the groups, features or shapes do not fit; nothing has changed then.
        """
        learned = state_dict.get(checkpoint.KEY)
        adapted = checkpoint.adapt_param_groups(state_dict, self.param_groups)
        if learned is not None:
            checkpoint.check_learned(
                learned,
                groups=checkpoint.group_signature(self.param_groups),
                features=self.feature_names,
                modulator=self.modulator.state_dict(),
            )
        super().load_state_dict(adapted)
        checkpoint.restore_moments(cast(Any, self.state), adapted, self._params())
        if learned is not None:
            self.load_meta_state_dict(learned)
            return
        checkpoint.warn_without_learned_part()
        steps = [float(s["step"]) for s in self.state.values() if "step" in s]
        self._steps = self._last_meta_step = int(max(steps, default=0.0))
        self._device_step.fill_(self._steps)
        self._features = self._modulation = self._last = None

    def __getstate__(self) -> dict[str, Any]:
        """Everything: torch's own list would drop the modulator in ``deepcopy`` and ``pickle``."""
        return {
            k: v
            for k, v in self.__dict__.items()
            if not k.startswith("_optimizer_") and k not in ("_zero_grad_profile_name",)
        }


def _check_hyperparameters(group: dict[str, Any], where: str) -> None:
    lr = group.get("lr")
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(f"{where}lr must have one element if it is a tensor, got shape {tuple(lr.shape)}")
        if lr.is_cpu and not (torch.isfinite(lr).all() and lr >= 0):
            raise ValueError(f"{where}lr must be in [0, inf), got {lr.item()}")
    elif "lr" in group:
        check_number(f"{where}lr", lr, 0.0)
    if "betas" in group:
        betas = group["betas"]
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ValueError(f"{where}betas must be a pair of numbers in [0, 1), got {betas!r}")
        for i, beta in enumerate(betas):
            check_number(f"{where}betas[{i}]", beta, 0.0, 1.0, open_high=True)
    for name in ("eps", "weight_decay"):
        if name in group:
            check_number(f"{where}{name}", group[name], 0.0)


def _check_group(group: dict[str, Any], defaults: dict[str, Any], index: int) -> None:
    where = f"param_groups[{index}]."
    if "params" not in group:
        raise ValueError(f"{where}params is missing; every param group needs it")
    for key in group:
        if key not in _GROUP_KEYS:
            close = difflib.get_close_matches(str(key), _GROUP_KEYS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{where}{key} is unknown; allowed are {', '.join(_GROUP_KEYS)}{hint}")
    for key in _SHARED:
        if key in group and group[key] != defaults[key]:
            raise ValueError(f"{where}{key} must be {defaults[key]!r} as for the whole optimizer, got {group[key]!r}")
    _check_hyperparameters(group, where)
    params = group["params"]
    group["params"] = [params] if isinstance(params, Tensor) else params
    if isinstance(group["params"], Iterable) and not isinstance(group["params"], set):
        group["params"] = list(group["params"])
        for entry in group["params"]:
            param = entry[1] if isinstance(entry, tuple) and len(entry) == 2 else entry
            if not isinstance(param, Tensor):
                continue  # the base class says so
            if param.layout != torch.strided:
                raise ValueError(f"{where}params must be dense, got a parameter with layout {param.layout}")
            if not (param.is_floating_point() or param.is_complex()):
                raise ValueError(f"{where}params must be floating point or complex, got dtype {param.dtype}")
            if defaults["fused"] and param.is_complex():
                raise ValueError(f"{where}params must be real with fused=True, got dtype {param.dtype}")
