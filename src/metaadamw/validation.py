"""Bad input is refused where it is given: the checks of ``MetaAdamW`` and of every param group."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metaadamw.config import check_flag, check_number

__all__ = [
    "check_dense_gradients",
    "check_flags",
    "check_grads",
    "check_hyperparameters",
    "check_meta_update",
    "check_model",
    "check_param_group",
    "check_state_devices",
    "check_type",
    "free_name",
]

HYPERPARAMETERS = ("lr", "betas", "eps", "weight_decay")
SHARED = ("maximize", "foreach", "fused", "capturable", "master_weights")
DESCRIPTION = ("params", "param_names", "name", "layer_type", "depth_bucket", "depth", "is_bias")
SCHEDULER = ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr")
"""Keys that torch's own schedulers keep in a group."""
GROUP_KEYS = (*DESCRIPTION, *HYPERPARAMETERS, *SHARED, *SCHEDULER)


def check_type(name: str, value: Any, *types: type) -> None:
    """Raise ``TypeError`` unless ``value`` is of one of the ``types``."""
    if not isinstance(value, types):
        allowed = " or ".join(t.__name__ for t in types)
        raise TypeError(f"{name} must be of type {allowed}, got {value!r}")


def check_model(model: Any) -> None:
    """Raise ``TypeError`` unless ``model`` is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def check_meta_update(mode: str, model: Any, loss_fn: Any) -> None:
    """Raise unless a meta-update can be asked for in ``mode``, with this model and loss."""
    if mode != "lookahead":
        raise RuntimeError(f"update_attention needs meta.mode='lookahead', got {mode!r}")
    check_model(model)
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be callable as loss_fn(model, batch), got {loss_fn!r}")


def check_flags(defaults: Mapping[str, Any], eps_inside_sqrt: Any) -> None:
    """Raise unless the choices of path are booleans that fit together."""
    check_flag("maximize", defaults["maximize"])
    check_flag("capturable", defaults["capturable"])
    check_flag("master_weights", defaults["master_weights"])
    check_flag("eps_inside_sqrt", eps_inside_sqrt)
    for name in ("foreach", "fused"):
        if defaults[name] is not None:
            check_flag(name, defaults[name])
    if defaults["foreach"] and defaults["fused"]:
        raise ValueError("foreach and fused must not both be True")
    if defaults["fused"] and eps_inside_sqrt:
        raise ValueError("eps_inside_sqrt=True is not available with fused=True")


def check_hyperparameters(group: Mapping[str, Any], where: str = "") -> None:
    """Raise unless the hyperparameters that ``group`` has are in range."""
    lr = group.get("lr")
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(
                f"{where}lr must have one element if it is a tensor, got shape {tuple(lr.shape)}"
            )
        if lr.is_cpu:  # reading it elsewhere would stall the device
            check_number(f"{where}lr", lr.item(), 0.0)
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


def check_param_group(
    group: Mapping[str, Any], defaults: Mapping[str, Any], index: int, taken_names: set[str]
) -> None:
    """Raise unless ``group`` can become the param group number ``index``; changes nothing."""
    where = f"param_groups[{index}]."
    if "params" not in group:
        raise ValueError(f"{where}params is missing; every param group needs it")
    for key in group:
        if key not in GROUP_KEYS:
            close = difflib.get_close_matches(str(key), GROUP_KEYS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{where}{key} is unknown; allowed are {', '.join(GROUP_KEYS)}{hint}")
    for key in SHARED:
        if key in group and group[key] != defaults[key]:
            raise ValueError(
                f"{where}{key} must be {defaults[key]!r} as for the whole optimizer, "
                f"got {group[key]!r}"
            )
    if group.get("name") in taken_names:
        raise ValueError(f"{where}name must be unique, got {group['name']!r} a second time")
    check_hyperparameters(group, where)
    params = group["params"]
    seen: set[int] = set()
    for entry in params if isinstance(params, (list, tuple)) else [params]:
        param = entry[1] if isinstance(entry, tuple) and len(entry) == 2 else entry
        if isinstance(param, Tensor):  # for anything else the base class has an error of its own
            _check_param(param, where, defaults)
        if id(param) in seen:
            raise ValueError(f"{where}params must not hold the same parameter twice")
        seen.add(id(param))


def _check_param(param: Tensor, where: str, defaults: Mapping[str, Any]) -> None:
    if param.layout != torch.strided:
        raise ValueError(f"{where}params must be dense, got one with layout {param.layout}")
    if getattr(param, "_fsdp_flattened", False):
        raise ValueError(
            f"{where}params must be whole or DTensor, got one flattened by "
            "FullyShardedDataParallel, of which only pieces are left; use fully_shard instead"
        )
    if not (param.is_floating_point() or param.is_complex()):
        raise ValueError(
            f"{where}params must be floating point or complex, got one of dtype {param.dtype}"
        )
    if defaults["master_weights"] and param.dtype == torch.float16:
        raise ValueError(
            f"{where}params must be bfloat16 or more with master_weights=True, got torch.float16: "
            "it is not the upper half of a float32"
        )
    if defaults["fused"] and param.is_complex():
        raise ValueError(
            f"{where}params must be real with fused=True, got one of dtype {param.dtype}"
        )


def check_dense_gradients(params: list[Tensor]) -> None:
    """Raise ``ValueError`` for a sparse gradient."""
    for param in params:
        if param.grad is not None and param.grad.layout != torch.strided:
            raise ValueError(
                f"gradients must be dense, got one with layout {param.grad.layout} for a parameter "
                f"of shape {tuple(param.shape)}; construct nn.Embedding with sparse=False"
            )


def check_state_devices(params: Sequence[Tensor], states: Sequence[Mapping[str, Any]]) -> None:
    """Raise ``ValueError`` unless moments are where their parameter is."""
    for param, state in zip(params, states, strict=True):
        if state and state["exp_avg"].device != param.device:
            raise ValueError(
                f"state must be on the device of its parameter, {param.device}, got exp_avg on "
                f"{state['exp_avg'].device}; to keep moments elsewhere, keep the parameters there "
                "as well (fully_shard with CPUOffloadPolicy)"
            )


def check_grads(grads: Sequence[Tensor | None], params: Sequence[Tensor]) -> None:
    """Raise ``ValueError`` unless there is one gradient or None of the right shape for each."""
    if len(grads) != len(params):
        raise ValueError(
            f"grads must hold one entry for each of {len(params)} parameters, got {len(grads)}"
        )
    for i, (grad, param) in enumerate(zip(grads, params, strict=True)):
        if grad is not None and grad.shape != param.shape:
            raise ValueError(
                f"grads[{i}] must have shape {tuple(param.shape)}, got {tuple(grad.shape)}"
            )


def free_name(index: int, taken: set[str]) -> str:
    """``group<index>``, or the next number that nobody took."""
    return next(name for i in itertools.count(index) if (name := f"group{i}") not in taken)
