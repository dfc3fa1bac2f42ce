"""Param groups as front ends give them: split tensor by tensor, named, and hinted at."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

__all__ = [
    "free_name",
    "hint_at_groups",
    "name_all",
    "one_per_tensor",
    "with_or_without_names",
]


def free_name(index: int, taken: set[str]) -> str:
    """``group<index>``, or the next number that nobody took."""
    return next(name for i in itertools.count(index) if (name := f"group{i}") not in taken)


def name_all(param_groups: Sequence[dict[str, Any]]) -> None:
    """Give a name to every group that somebody has put there without one, or with another's."""
    taken: set[str] = set()
    for index, group in enumerate(param_groups):
        if str(group.get("name", "")) in taken or "name" not in group:
            group["name"] = free_name(index, taken | {str(g.get("name")) for g in param_groups})
        taken.add(str(group["name"]))


def with_or_without_names(group: dict[str, Any], *, named: bool) -> None:
    """Make the parameters of a new group named, or unnamed, as those of the others are.

    Torch refuses to mix them. A name that nobody gave is the group's, with a number.
    """
    params = group["params"]
    entries = [params] if isinstance(params, Tensor) else list(params)
    has = [isinstance(entry, tuple) for entry in entries]
    known = "param_names" in group or (bool(has) and all(has))
    if named and not known:
        group["params"] = [(f"{group['name']}.{i}", entry) for i, entry in enumerate(entries)]
    elif not named and known:
        group["params"] = [entry[1] if isinstance(entry, tuple) else entry for entry in entries]
        group.pop("param_names", None)


def one_per_tensor(group: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One group for each tensor of a group; options and all other keys stay.

    Args:
        group: with a name; its parameters may have names, too.

    Example:
        >>> [part["name"] for part in one_per_tensor({"params": [torch.ones(1)] * 2, "name": "a"})]
        ['a.0', 'a.1']
    """
    params = group["params"]
    entries = [params] if isinstance(params, Tensor) else list(params)
    names = group.get("param_names", [None] * len(entries))
    rest = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    parts = []
    for i, (entry, name) in enumerate(zip(entries, names, strict=True)):
        known = entry[0] if isinstance(entry, tuple) else name
        part = {**rest, "params": [entry], "name": f"{group['name']}.{known or i}"}
        if name is not None:
            part["param_names"] = [name]
        parts.append(part)
    return parts


_hinted = False


def hint_at_groups(param_groups: Sequence[Mapping[str, Any]]) -> None:
    """Say once, where all tensors are in one group, that there is nothing to tell apart."""
    global _hinted
    if _hinted or len(param_groups) != 1:
        return
    tensors = sum(param.requires_grad for param in param_groups[0]["params"])
    if tensors > 1:
        _hinted = True
        warnings.warn(
            f"all {tensors} tensors are in one param group, so there is one learning rate for all "
            "of them: give MetaAdamW the groups of fine_grained_groups(model), or split='tensor'",
            stacklevel=7,
        )
