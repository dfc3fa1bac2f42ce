"""Versioned checkpoints of plain tensors: what is saved, what is checked before anything is taken over."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from metaadamw.tokens import moment_dtype

__all__ = ["VERSION", "adapt_param_groups", "check_learned", "group_signature", "restore_moments"]

VERSION = 1
KEY = "metaadamw"
"""The learned part's key in ``state_dict()``."""


def group_signature(param_groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Name and size of every group: two groupings with the same signature are interchangeable."""
    return [
        {
            "name": str(group["name"]),
            "shapes": [list(p.shape) for p in group["params"]],
        }
        for group in param_groups
    ]


def check_learned(
    saved: Mapping[str, Any],
    *,
    groups: list[dict[str, Any]],
    features: list[str],
    modulator: Mapping[str, Tensor],
) -> None:
    """Raise ``ValueError`` unless the learned part ``saved`` fits this optimizer; changes nothing."""
    version = saved.get("version")
    if version != VERSION:
        raise ValueError(
            f"state_dict[{KEY!r}]['version'] must be {VERSION}, got {version!r}: written by another version of metaadamw"
        )
    if saved["features"] != features:
        raise ValueError(
            f"checkpoint has the features {saved['features']}, this optimizer {features}: construct it with the same ModulatorConfig"
        )
    if saved["groups"] != groups:
        ours, theirs = [g["name"] for g in groups], [g["name"] for g in saved["groups"]]
        detail = (
            f"groups {theirs}, this optimizer {ours}"
            if ours != theirs
            else "other parameter shapes in the same groups"
        )
        raise ValueError(f"checkpoint has another grouping: {detail}")
    ours_shapes = {name: tuple(t.shape) for name, t in modulator.items()}
    theirs_shapes = {name: tuple(t.shape) for name, t in saved["modulator"].items()}
    if ours_shapes != theirs_shapes:
        differing = sorted(
            n
            for n in ours_shapes.keys() | theirs_shapes.keys()
            if ours_shapes.get(n) != theirs_shapes.get(n)
        )
        name = differing[0]
        raise ValueError(
            f"checkpoint has another modulator: {name} has shape {theirs_shapes.get(name)}, here {ours_shapes.get(name)}; "
            "construct the optimizer with the same ModulatorConfig"
        )


def adapt_param_groups(
    state_dict: Mapping[str, Any], param_groups: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """A state dict of this optimizer or of ``torch.optim.AdamW``, with the groups that this optimizer has.

    Saved hyperparameters win; our own keys (name, layer type, …) stay. An AdamW checkpoint in other groups is regrouped by
    parameter names where both sides have them.

    Raises:
        ValueError: the groups do not fit.
    """
    for key in ("state", "param_groups"):
        if key not in state_dict:
            raise ValueError(
                f"state_dict must have the key {key!r}, got {sorted(map(str, state_dict))}"
            )
    saved_groups = state_dict["param_groups"]
    if any(g.get("amsgrad") for g in saved_groups):
        raise ValueError("state_dict has amsgrad=True, which MetaAdamW does not know")
    sizes = [len(g["params"]) for g in param_groups]
    saved_sizes = [len(g["params"]) for g in saved_groups]
    if sizes == saved_sizes:
        groups = [
            _merged(own, saved, saved["params"])
            for own, saved in zip(param_groups, saved_groups, strict=True)
        ]
    elif KEY not in state_dict and all("param_names" in g for g in (*param_groups, *saved_groups)):
        groups = _regrouped(param_groups, saved_groups)
    else:
        raise ValueError(
            f"state_dict has param groups of {saved_sizes} parameters, this optimizer of {sizes}; only a torch.optim.AdamW checkpoint "
            "with param_names (named_parameters()) can be regrouped"
        )
    _check_shapes(state_dict["state"], groups, param_groups)
    return {"state": state_dict["state"], "param_groups": groups}


def _merged(
    own: Mapping[str, Any], saved: Mapping[str, Any], params: Sequence[int]
) -> dict[str, Any]:
    """Our keys, the saved hyperparameters; the choice of path is this optimizer's own."""
    kept = {
        "name",
        "layer_type",
        "depth_bucket",
        "depth",
        "is_bias",
        "param_names",
        "foreach",
        "fused",
        "capturable",
        "maximize",
    }
    foreign = {"amsgrad", "differentiable", "decoupled_weight_decay"}
    merged = {k: v for k, v in own.items() if k != "params"}
    merged |= {
        k: v for k, v in saved.items() if k not in foreign and not (k in kept and k in merged)
    }
    return {**merged, "params": list(params)}


def _regrouped(
    param_groups: Sequence[Mapping[str, Any]], saved_groups: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    where = {
        name: (index, group)
        for group in saved_groups
        for name, index in zip(group["param_names"], group["params"], strict=True)
    }
    groups = []
    for own in param_groups:
        missing = [n for n in own["param_names"] if n not in where]
        if missing:
            raise ValueError(
                f"state_dict has no parameter {missing[0]!r} (of group {own['name']!r})"
            )
        sources = {id(where[n][1]): where[n][1] for n in own["param_names"]}
        if len(sources) > 1:
            raise ValueError(
                f"group {own['name']!r} would take parameters from {len(sources)} saved param groups with hyperparameters of their own; "
                "give those groups to fine_grained_groups(model, param_groups)"
            )
        (source,) = sources.values()
        groups.append(_merged(own, source, [where[n][0] for n in own["param_names"]]))
    return groups


def _check_shapes(
    state: Mapping[Any, Any],
    groups: Sequence[Mapping[str, Any]],
    param_groups: Sequence[Mapping[str, Any]],
) -> None:
    for group, own in zip(groups, param_groups, strict=True):
        for index, param in zip(group["params"], own["params"], strict=True):
            for key in ("exp_avg", "exp_avg_sq"):
                value = state.get(index, {}).get(key)
                if value is not None and value.shape != param.shape:
                    raise ValueError(
                        f"state_dict[{key!r}] of a parameter of group {own['name']!r} has shape {tuple(value.shape)}, "
                        f"the parameter {tuple(param.shape)}"
                    )


def restore_moments(
    state: Mapping[Tensor, dict[str, Any]], saved: Mapping[str, Any], params: Sequence[Tensor]
) -> None:
    """Moments from ``saved`` in their own precision: the base class casts them to the parameter's, and shares memory."""
    indices = [index for group in saved["param_groups"] for index in group["params"]]
    for index, param in zip(indices, params, strict=True):
        entry = saved["state"].get(index)
        if not entry:
            continue
        for key in ("exp_avg", "exp_avg_sq"):
            value = entry[key].to(device=param.device, dtype=moment_dtype(param), copy=True)
            state[param][key] = value
        state[param]["step"] = torch.as_tensor(state[param]["step"], dtype=torch.float32).clone()


def warn_without_learned_part() -> None:
    """Say aloud that a checkpoint brought moments but no modulator."""
    warnings.warn(
        "this checkpoint has no learned part (state_dict()['metaadamw']): the moments are restored, the modulator stays as it is. That is "
        "right for a torch.optim.AdamW checkpoint; after distributed checkpointing call load_meta_state_dict() as well",
        stacklevel=3,
    )
