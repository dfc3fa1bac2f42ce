"""Bad input is refused where it is given: the checks of ``MetaAdamW`` and of every param group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metaadamw.checks import check_flag, check_number

__all__ = [
    "can_move",
    "check_dense_gradients",
    "check_flags",
    "check_grads",
    "check_hyperparameters",
    "check_model",
    "check_param_group",
    "check_state_devices",
]

HYPERPARAMETERS = ("lr", "betas", "eps", "weight_decay")
SHARED = ("maximize", "foreach", "fused", "capturable", "master_weights")
DESCRIPTION = ("params", "param_names", "name", "layer_type", "depth_bucket", "depth", "is_bias")
SCHEDULER = ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr")
"""Keys that torch's own schedulers keep in a group."""
GROUP_KEYS = (*DESCRIPTION, *HYPERPARAMETERS, *SHARED, *SCHEDULER)


def check_model(model: Any) -> None:
    """Raise ``TypeError`` unless ``model`` is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")


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


_TRAINED = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.complex64,
    torch.complex128,
)


def can_move(param: Tensor) -> bool:
    """Whether a parameter is of a kind that is trained.

    Quantised weights (float8, int8), those that lie nowhere (meta) and sparse ones are not. While
    they are frozen they decide nothing: neither device nor precision, and nothing is read of them.
    """
    return param.dtype in _TRAINED and param.layout == torch.strided and param.device.type != "meta"


def _near_miss(key: str) -> str | None:
    """The key of ours that is one or two letters away from an unknown one.

    All other unknown keys are kept, as torch keeps them: ``lr_scale``, a wrapper's own state. Of a
    short key one letter is much.
    """
    if key in GROUP_KEYS:
        return None
    for ours in GROUP_KEYS:
        allowed = 1 if min(len(key), len(ours)) <= 4 else 2
        if abs(len(key) - len(ours)) <= allowed and _distance(key, ours) <= allowed:
            return ours
    return None


def _distance(a: str, b: str) -> int:
    """Letters to insert, delete or replace to come from one word to the other (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]


def check_param_group(
    group: Mapping[str, Any], defaults: Mapping[str, Any], index: int, taken_names: set[str]
) -> None:
    """Raise unless ``group`` can become the param group number ``index``; changes nothing."""
    where = f"param_groups[{index}]."
    if "params" not in group:
        raise ValueError(f"{where}params is missing; every param group needs it")
    for key in group:
        meant = _near_miss(str(key))
        if meant is not None:
            raise ValueError(f"{where}{key} is unknown; did you mean {meant!r}?")
    if group.get("amsgrad"):
        raise ValueError(f"{where}amsgrad must be False, got {group['amsgrad']!r}")
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
    if not param.requires_grad and not can_move(param):
        return  # frozen, and of a kind that is never trained: AdamW passes it over as well
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
