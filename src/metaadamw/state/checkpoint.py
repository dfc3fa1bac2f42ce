"""Versioned checkpoints of plain tensors, checked before anything is taken over."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from metaadamw.grouping.fine_grained import bare_name
from metaadamw.grouping.validation import check_hyperparameters
from metaadamw.state.master_weights import LOW_BITS, keeps_low_bits
from metaadamw.state.moments import counter_device, moment_dtype
from metaadamw.state.token import WINDOW_KEYS

__all__ = [
    "adapt_param_groups",
    "carrier",
    "check_fits",
    "group_signature",
    "hooks_around",
    "learned_part",
    "restore_moments",
    "steps_taken",
    "versioned",
]

VERSION = 4
KEY = "metaadamw"
"""The learned part's key in the first param group of ``state_dict()``.

Distributed checkpointing keeps ``state`` and ``param_groups`` of an optimizer and drops the rest;
here the learned part travels with whatever carries the moments. Flattened, it asks the optimizer's
own groups which keys to look for: the first of them has the key too, without a value.
"""

MOMENTS = ("exp_avg", "exp_avg_sq")
_OWN_KEYS = (  # what this optimizer decides, whatever the checkpoint says
    *("name", "layer_type", "depth_bucket", "depth", "is_bias", "param_names"),
    *("foreach", "fused", "capturable", "maximize", "master_weights"),
)
_FOREIGN_KEYS = (KEY, "amsgrad", "differentiable", "decoupled_weight_decay")  # of torch's AdamW


def carrier(param_groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The param group with which the learned part travels: the first that has parameters."""
    return next(group for group in param_groups if group["params"])


@contextmanager
def hooks_around(optimizer: Optimizer, state_dict: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the checkpoint as the hooks before loading leave it; after the block come the others.

    What is loaded is more than the base class loads, which runs no hooks inside the block.
    """
    before = optimizer._optimizer_load_state_dict_pre_hooks
    after = optimizer._optimizer_load_state_dict_post_hooks
    state_dict = copy(state_dict)
    for hook in before.values():
        changed = hook(optimizer, state_dict)
        state_dict = state_dict if changed is None else changed
    optimizer._optimizer_load_state_dict_pre_hooks = OrderedDict()
    optimizer._optimizer_load_state_dict_post_hooks = OrderedDict()
    try:
        yield state_dict
    finally:
        optimizer._optimizer_load_state_dict_pre_hooks = before
        optimizer._optimizer_load_state_dict_post_hooks = after
    for finish in after.values():
        finish(optimizer)


def learned_part(saved: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any] | None:
    """The learned part to take over, checked; None, and a warning, if there is none to be had.

    Args:
        saved: the result of ``adapt_param_groups``.
        own: the learned part of the optimizer that is to take it over.
    """
    learned: dict[str, Any] | None = saved[KEY]
    steps = steps_taken(saved)
    if learned is not None:
        check_fits(learned, own)
        if learned["steps"] and not saved["state"]:
            warnings.warn(
                f"this checkpoint is one after {learned['steps']} steps, but has no moments: give "
                "torch.distributed.checkpoint the result of get_optimizer_state_dict(), not the "
                "optimizer",
                stacklevel=3,
            )
        # Where a checkpoint has none, partial loading gives back what the fresh optimizer had.
        if learned["steps"] or not steps:
            return learned
    warnings.warn(
        "this checkpoint has no learned part: the moments are restored, the modulator stays as it "
        "is. That is right for a checkpoint of torch.optim.AdamW and for no other",
        stacklevel=3,
    )
    return None


def steps_taken(saved: Mapping[str, Any]) -> int:
    """Steps after which the moments in a checked ``saved`` were taken."""
    entries = (saved["state"].get(i) for group in saved["param_groups"] for i in group["params"])
    return int(max((float(entry["step"]) for entry in entries if entry), default=0.0))


def versioned(
    learned: Mapping[str, Any], param_groups: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The learned part as a checkpoint has it: with its version, and the groups it is of."""
    return {"version": VERSION, "groups": group_signature(param_groups), **learned}


def group_signature(param_groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Names and shapes of every group: groupings with the same signature are interchangeable."""
    return [
        {
            "name": str(group["name"]),
            "param_names": _names(group),
            "shapes": [list(p.shape) for p in group["params"]],
        }
        for group in param_groups
    ]


def _names(group: Mapping[str, Any]) -> list[str]:
    """Names of the parameters, whatever their model is wrapped in."""
    return [bare_name(name) for name in group.get("param_names", [])]


def check_fits(saved: Any, own: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` unless the learned part ``saved`` fits; changes nothing.

    Args:
        saved: what a checkpoint holds.
        own: the learned part of the optimizer that is to take it over.
    """
    version = saved.get("version") if isinstance(saved, Mapping) else None
    if not isinstance(version, int) or version != VERSION:
        got = version if isinstance(saved, Mapping) else type(saved).__name__
        raise ValueError(
            f"the learned part ({KEY!r} in a param group) must be one of version {VERSION}, got "
            f"{got!r}"
        )
    for keys, has in ((own.keys() - saved.keys(), "no"), (saved.keys() - own.keys(), "a")):
        if keys:
            raise ValueError(f"the learned part has {has} key {min(keys)!r}, unlike ours")
    for key, what in (("features", "features"), ("architecture", "modulator")):
        if type(saved[key]) is not type(own[key]) or saved[key] != own[key]:
            raise ValueError(
                f"checkpoint has the {what} {saved[key]}, this optimizer {own[key]}: construct it "
                "with the same modulator"
            )
    _check_groups(saved["groups"], own["groups"])
    for key in own:
        if key not in ("version", "features", "architecture", "groups", "learning"):
            _check_like(key, saved[key], own[key])
    _check_learning(saved["learning"], own["learning"])


def _check_learning(saved: Any, own: Mapping[str, Any]) -> None:
    kind = saved.get("kind") if isinstance(saved, Mapping) else None
    if kind != own["kind"]:
        raise ValueError(
            f"checkpoint was learned by {kind}, this optimizer learns by {own['kind']}: construct "
            "it with the same learning"
        )
    # Another optimizer of the modulator may go on: only Adam keeps anything.
    other = {k for k, v in own.items() if k.endswith("_optimizer") and {} in (saved.get(k), v)}
    _check_like(
        "learning",
        {key: value for key, value in saved.items() if key not in other},
        {key: value for key, value in own.items() if key not in other},
    )


def _check_groups(saved: Any, own: list[dict[str, Any]]) -> None:
    if not isinstance(saved, list) or not all(isinstance(group, dict) for group in saved):
        raise ValueError(f"checkpoint: groups must be a list of dicts, got {saved!r}")
    if saved == own:
        return
    names, ours = ([group.get("name") for group in groups] for groups in (saved, own))
    detail = f"groups {names}, this optimizer {ours}" if names != ours else "other parameters"
    raise ValueError(f"checkpoint has another grouping: {detail}")


def _check_like(where: str, saved: Any, own: Any) -> None:
    """Raise ``ValueError`` unless ``saved`` is built like ``own``: same keys, lengths, shapes."""
    if isinstance(own, Tensor):
        if not isinstance(saved, Tensor) or saved.shape != own.shape:
            got = tuple(saved.shape) if isinstance(saved, Tensor) else type(saved).__name__
            raise ValueError(
                f"checkpoint: {where} must be a tensor of shape {tuple(own.shape)}, got {got}"
            )
    elif isinstance(own, Mapping):
        if not isinstance(saved, Mapping) or saved.keys() != own.keys():
            keys = sorted(saved) if isinstance(saved, Mapping) else type(saved).__name__
            raise ValueError(f"checkpoint: {where} must have the keys {sorted(own)}, got {keys}")
        for key in own:
            _check_like(f"{where}.{key}", saved[key], own[key])
    elif isinstance(own, list):
        if not isinstance(saved, (list, tuple)) or len(saved) != len(own):
            raise ValueError(f"checkpoint: {where} must have {len(own)} entries, got {saved!r}")
        for i, (theirs, ours) in enumerate(zip(saved, own, strict=True)):
            _check_like(f"{where}[{i}]", theirs, ours)
    elif isinstance(own, str):
        if not isinstance(saved, str):
            raise ValueError(f"checkpoint: {where} must be a string, got {saved!r}")
    elif isinstance(own, bool):
        if not isinstance(saved, bool):
            raise ValueError(f"checkpoint: {where} must be True or False, got {saved!r}")
    elif isinstance(own, int) and (type(saved) is not int or saved < 0):
        raise ValueError(f"checkpoint: {where} must be a count, got {saved!r}")


def adapt_param_groups(
    state_dict: Any, param_groups: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """A state dict of ``MetaAdamW`` or ``torch.optim.AdamW``, in the groups of this optimizer.

    Saved hyperparameters win; our own keys (name, layer type, …) stay. An AdamW checkpoint in other
    groups is regrouped by parameter names where both sides have them.

    Raises:
        ValueError: the groups or the state do not fit.
    """
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        got = sorted(map(str, state_dict)) if isinstance(state_dict, Mapping) else state_dict
        raise ValueError(f"state_dict must have the keys 'state' and 'param_groups', got {got!r}")
    saved_groups, state = state_dict["param_groups"], state_dict["state"]
    if not isinstance(saved_groups, list) or not all(
        isinstance(g, Mapping) and isinstance(g.get("params"), list) for g in saved_groups
    ):
        raise ValueError("state_dict['param_groups'] must be a list of dicts with a list 'params'")
    if not isinstance(state, Mapping):
        raise ValueError(f"state_dict['state'] must be a dict, got {type(state).__name__}")
    if any(g.get("amsgrad") for g in saved_groups):
        raise ValueError("state_dict has amsgrad=True, which MetaAdamW does not know")
    sizes = [len(g["params"]) for g in param_groups]
    saved_sizes = [len(g["params"]) for g in saved_groups]
    named = all("param_names" in g for g in (*param_groups, *saved_groups))
    same_names = not named or all(
        _names(own) == _names(saved) for own, saved in zip(param_groups, saved_groups, strict=False)
    )
    learned = next((g[KEY] for g in saved_groups if g.get(KEY) is not None), None)
    if sizes == saved_sizes and (same_names or learned is not None):
        # With a learned part its own signature tells whether the names agree.
        groups = [
            _merged(own, saved, saved["params"])
            for own, saved in zip(param_groups, saved_groups, strict=True)
        ]
    elif named and learned is None:
        groups = _regrouped(param_groups, saved_groups)
    else:
        raise ValueError(
            f"state_dict has param groups of {saved_sizes} parameters, this optimizer of {sizes}; "
            "only a torch.optim.AdamW checkpoint with param_names (named_parameters()) can be "
            "regrouped"
        )
    for i, group in enumerate(groups):
        try:
            check_hyperparameters(group, f"state_dict['param_groups'][{i}].")
        except TypeError as error:
            raise ValueError(str(error)) from error
    _check_moments(state, groups, param_groups)
    return {"state": state, "param_groups": groups, KEY: learned}


def _merged(
    own: Mapping[str, Any], saved: Mapping[str, Any], params: Sequence[int]
) -> dict[str, Any]:
    merged = {k: v for k, v in own.items() if k != "params"}
    merged |= {k: v for k, v in saved.items() if k not in (*_FOREIGN_KEYS, *_OWN_KEYS)}
    return {**merged, "params": list(params)}


def _regrouped(
    param_groups: Sequence[Mapping[str, Any]], saved_groups: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    where = {
        name: (index, group)
        for group in saved_groups
        for name, index in zip(_names(group), group["params"], strict=True)
    }
    groups = []
    for own in param_groups:
        names = _names(own)
        missing = [n for n in names if n not in where]
        if missing:
            raise ValueError(f"state_dict has no parameter {missing[0]!r}, of {own['name']!r}")
        sources = {id(where[n][1]): where[n][1] for n in names}
        if len(sources) != 1:
            raise ValueError(
                f"group {own['name']!r} would take parameters from {len(sources)} saved groups, "
                "each with hyperparameters of its own; give those groups to "
                "fine_grained_groups(model, param_groups)"
            )
        (source,) = sources.values()
        groups.append(_merged(own, source, [where[n][0] for n in names]))
    return groups


def _check_moments(
    state: Mapping[Any, Any],
    groups: Sequence[Mapping[str, Any]],
    param_groups: Sequence[Mapping[str, Any]],
) -> None:
    for group, own in zip(groups, param_groups, strict=True):
        for index, param in zip(group["params"], own["params"], strict=True):
            entry = state.get(index)
            if not entry:
                continue
            where = f"state of a parameter of group {own['name']!r}"
            missing = [key for key in ("step", *MOMENTS) if key not in entry]
            if missing:
                raise ValueError(f"{where} must have {missing[0]!r}, got only {sorted(entry)}")
            for key in (*MOMENTS, *({LOW_BITS, *WINDOW_KEYS} & entry.keys())):
                _check_like(f"{where}: {key}", entry[key], param)
            step = entry["step"]
            if not isinstance(step, (int, float)) and not (
                isinstance(step, Tensor) and step.numel() == 1
            ):
                raise ValueError(f"{where}: step must be a number, got {step!r}")


def restore_moments(
    state: Mapping[Tensor, dict[str, Any]], saved: Mapping[str, Any], params: Sequence[Tensor]
) -> None:
    """Moments and lower halves from ``saved`` in their own precision.

    The base class casts them to that of the parameter, and shares memory with the checkpoint; step
    counters it leaves on a device (``map_location``), where reading one would stall every step.
    Lower halves are kept only where this optimizer has asked for master weights.
    """
    indices = [(index, g) for g in saved["param_groups"] for index in g["params"]]
    for (index, group), param in zip(indices, params, strict=True):
        entry = saved["state"].get(index)
        if not entry:
            continue
        dtypes = dict.fromkeys((*MOMENTS, *({*WINDOW_KEYS} & entry.keys())), moment_dtype(param))
        if state[param].pop(LOW_BITS, None) is not None and keeps_low_bits(group, param):
            dtypes[LOW_BITS] = torch.int16
        for key, dtype in dtypes.items():
            state[param][key] = entry[key].to(device=param.device, dtype=dtype, copy=True)
        device = counter_device(group, param)
        count = torch.as_tensor(entry["step"], dtype=torch.float32, device=device)
        state[param]["step"] = count.clone()
