"""Sec. 3.2: a model's parameters as standard PyTorch param groups, one token each.

A parameter's group is (layer type, depth bucket, is bias); the type comes from the parameter's name
first and from the class of its module second.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from torch import Tensor, nn

from metaadamw.checks import check_choice
from metaadamw.grouping.validation import check_model

__all__ = ["bare_name", "fine_grained_groups", "group_table"]

_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")

# Order matters: "attention.norm" is attention, as in the authors' code.
_NAME_RULES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("embed",), "embedding"),
    (("attn", "attention"), "attention"),
    (("ffn", "mlp", "feed_forward"), "feed_forward"),
    (("norm",), "layer_norm"),
)
_BATCH_NORMS = (nn.modules.batchnorm._NormBase,)
_CLASS_RULES: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    ((nn.Linear, nn.Bilinear), "feed_forward"),
    ((nn.Embedding, nn.EmbeddingBag), "embedding"),
    ((nn.MultiheadAttention,), "attention"),
    ((nn.LayerNorm, nn.GroupNorm, nn.RMSNorm), "layer_norm"),
)
_EXTENDED_CLASS_RULES: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    (_BATCH_NORMS, "batch_norm"),
    ((nn.modules.conv._ConvNd,), "convolution"),
    ((nn.RNNBase, nn.RNNCellBase), "recurrent"),
)


def _layer_type(name: str, module: nn.Module, extended: bool) -> str:
    lowered = name.lower()
    for keys, layer_type in _NAME_RULES:
        if any(key in lowered for key in keys):
            # A BatchNorm2d called "norm1" is a norm by name; only its class tells which.
            if extended and layer_type == "layer_norm" and isinstance(module, _BATCH_NORMS):
                return "batch_norm"
            return layer_type
    rules = (_EXTENDED_CLASS_RULES if extended else ()) + _CLASS_RULES
    for classes, layer_type in rules:
        if isinstance(module, classes):
            return layer_type
    return "other"


def _depth_number(name: str, extended: bool) -> int | None:
    """The first number in the dotted name; at its very start only in the extended reading."""
    match = re.search(r"(?:^|\.)(\d+)\." if extended else r"\.(\d+)\.", name)
    return int(match.group(1)) if match else None


def is_bias(name: str, param: Tensor) -> bool:
    """Whether a parameter counts as a bias: one-dimensional, or so named."""
    return param.dim() == 1 or name.endswith("bias")


def bare_name(name: str) -> str:
    """The name without what DistributedDataParallel, ``torch.compile`` and the like add to it."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    return ".".join(parts[parts[0] == "module" :] if parts else parts)


def normalized_depths(names: Iterable[str], *, extended: bool = True) -> list[float | None]:
    """Depth of each parameter in [0, 1]: the number in its name over the largest; None without."""
    numbers = [_depth_number(name, extended) for name in names]
    largest = max((n for n in numbers if n is not None), default=0)
    return [None if n is None else n / max(largest, 1) for n in numbers]


def _depth_bucket(depth: float | None) -> str:
    if depth is None:
        return "middle"
    return "shallow" if depth < 1 / 3 else "deep" if depth > 2 / 3 else "middle"


def fine_grained_groups(
    model: nn.Module,
    param_groups: Iterable[dict[str, Any]] | None = None,
    *,
    kinds: Literal["extended", "paper"] = "extended",
) -> list[dict[str, Any]]:
    """Split a model's trainable parameters by layer type, depth bucket and bias (Sec. 3.2).

    Tied weights appear once, frozen ones are left out. The result is a list of ordinary param
    groups with the keys ``params, param_names, name, layer_type, depth_bucket, depth, is_bias``.

    Args:
        model: the model.
        param_groups: groups of the user's own (decay / no decay, say) over parameters of this
            model; each is split on its own, its hyperparameters are kept and its name comes before
            those of its parts. Parameters in none of them are left out. None: all trainable ones.
        kinds: "extended" also tells convolution, recurrent and batch norm from "other" and reads a
            number at the start of a name (``nn.Sequential``) as depth; "paper" has the paper's five
            layer types.

    Returns:
        The groups, in the order in which their first parameter appears.

    Raises:
        ValueError: no trainable parameter; a given parameter is not the model's, or is in two
            groups; a group without "params"; an unknown ``kinds``.
        TypeError: ``model`` is no module, a group no dict.

    Example:
        >>> model = nn.Sequential(nn.Embedding(10, 4), nn.LayerNorm(4), nn.Linear(4, 2))
        >>> [group["name"] for group in fine_grained_groups(model)[:2]]
        ['embedding.shallow.weight', 'layer_norm.middle.bias']
    """
    check_model(model)
    check_choice("kinds", kinds, ("extended", "paper"))
    extended = kinds == "extended"

    named = {id(p): (bare_name(name), p) for name, p in model.named_parameters()}
    modules = {bare_name(name): module for name, module in model.named_modules()}
    depths = dict(
        zip(
            named,
            normalized_depths((n for n, _ in named.values()), extended=extended),
            strict=True,
        )
    )

    sources: list[dict[str, Any]] = [{"params": list(model.parameters())}]
    if param_groups is not None:
        given = list(param_groups)
        if not all(isinstance(group, Mapping) for group in given):
            raise TypeError(
                "param_groups must be dicts with the key 'params', got "
                f"{type(next(g for g in given if not isinstance(g, Mapping))).__name__}"
            )
        sources = [dict(group) for group in given]
    groups: dict[tuple[int, str, str, bool], dict[str, Any]] = {}
    member_depths: dict[int, list[float]] = {}
    seen: set[int] = set()
    for index, source in enumerate(sources):
        params = source.pop("params", None)
        if params is None:
            raise ValueError(f"param_groups[{index}] must have the key 'params'")
        source.pop("param_names", None)
        label = source.pop("name", f"group{index}" if len(sources) > 1 else None)
        for entry in [params] if isinstance(params, Tensor) else params:
            param = entry[1] if isinstance(entry, tuple) else entry
            if id(param) not in named:
                raise ValueError(
                    f"param_groups[{index}] holds a tensor of shape {tuple(param.shape)} that is "
                    "not a parameter of model"
                )
            if id(param) in seen:
                raise ValueError(
                    f"param_groups[{index}]: parameter {named[id(param)][0]!r} appears in more "
                    "than one place"
                )
            seen.add(id(param))
            name = named[id(param)][0]
            if not param.requires_grad:
                continue
            layer_type = _layer_type(name, modules[name.rpartition(".")[0]], extended)
            depth, bias = depths[id(param)], is_bias(name, param)
            bucket = _depth_bucket(depth)
            key = (index, layer_type, bucket, bias)
            if key not in groups:
                prefix = "" if label is None else f"{label}."
                groups[key] = {
                    "params": [],
                    "param_names": [],
                    **source,
                    "name": f"{prefix}{layer_type}.{bucket}.{'bias' if bias else 'weight'}",
                    "layer_type": layer_type,
                    "depth_bucket": bucket,
                    "is_bias": bias,
                }
            group = groups[key]
            group["params"].append(param)
            group["param_names"].append(name)
            member_depths.setdefault(id(group), []).append(0.5 if depth is None else depth)
    if not groups:
        raise ValueError("model has no trainable parameter (requires_grad=True) to group")
    for group in groups.values():
        members = member_depths[id(group)]
        group["depth"] = sum(members) / len(members)
    return list(groups.values())


def group_table(groups: Iterable[dict[str, Any]]) -> str:
    """The groups as a plain text table: name, kind, depth, tensors, parameters.

    Args:
        groups: the result of ``fine_grained_groups``, or ``optimizer.param_groups``.

    Example:
        >>> print(group_table(fine_grained_groups(nn.Linear(3, 2))))
        name                        kind          depth   tensors  parameters
        feed_forward.middle.weight  feed_forward  middle        1           6
        feed_forward.middle.bias    feed_forward  middle        1           2
        total                                                   2           8
    """
    rows = [
        (
            str(group.get("name", f"group{i}")),
            str(group.get("layer_type", "-")),
            str(group.get("depth_bucket", "-")),
            len(group["params"]),
            sum(p.numel() for p in group["params"]),
        )
        for i, group in enumerate(groups)
    ]
    rows.append(("total", "", "", sum(r[3] for r in rows), sum(r[4] for r in rows)))
    width = max(len(r[0]) for r in rows)
    kind_width = max(max(len(r[1]) for r in rows), len("kind"))
    lines = [f"{'name':{width}}  {'kind':{kind_width}}  {'depth':7} tensors  parameters"]
    lines += [f"{n:{width}}  {k:{kind_width}}  {d:7} {t:7}  {p:10,}" for n, k, d, t, p in rows]
    return "\n".join(lines)
