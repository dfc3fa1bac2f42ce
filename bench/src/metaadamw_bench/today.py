"""Settings of our own arms as they are written down: plain values that the library takes as dicts.

Runs of version 0.1 had one configuration for every modulator and one for every way of learning;
their settings are read as what they stand for today.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, cast

from metaadamw.choices import LEARNING, MODULATORS
from metaadamw.learning.base import LearningOptions
from metaadamw.learning.hypergradient import FACTORS_RATE
from metaadamw.learning.meta_optimizer import META_RATES
from metaadamw.modulators.base import ModulatorKind

__all__ = ["plain_choice", "settings_of_today"]

_KINDS = {kind: name for name, kind in (*MODULATORS.items(), *LEARNING.items())}


def plain_choice(choice: ModulatorKind | LearningOptions) -> dict[str, Any]:
    """A modulator or a way of learning as plain values, with its name as "kind".

    Example:
        >>> plain_choice(Off())
        {'kind': 'off', 'as_run': ()}
    """
    return {"kind": _KINDS[type(choice)], **asdict(cast(Any, choice))}


def settings_of_today(settings: Mapping[str, Any]) -> dict[str, Any]:
    """An arm's settings with today's names, and with the defaults of what they do not mention."""
    found = dict(settings)
    for name in ("modulator", "meta", "learning"):
        if not isinstance(found.get(name, {}), Mapping):
            raise ValueError(f"arm_settings.{name} must be an object, got {found[name]!r}")
    if "meta" in found:
        meta, modulator = dict(found.pop("meta")), dict(found.get("modulator", {}))
        found["modulator"] = _modulator(modulator, meta)
        found["learning"] = _learning(meta, found["modulator"])
    for name, kinds in (("modulator", MODULATORS), ("learning", LEARNING)):
        if name in found:
            defaults = {f.name: f.default for f in fields(kinds[found[name]["kind"]])}  # type: ignore[arg-type]
            found[name] = {**json.loads(json.dumps(defaults)), **found[name]}
    return found


def _of(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the given values that the kind has."""
    kinds = MODULATORS if kind in MODULATORS else LEARNING
    names = {field.name for field in fields(kinds[kind])}  # type: ignore[arg-type]
    return {"kind": kind, **{key: value for key, value in given.items() if key in names}}


def _modulator(old: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
    if old.get("layers", 2) == 0:
        before = {"alpha_range": 1.0, "scale": "linear", "update_every": 1}
        return _of("factors", {**before, **old})
    frozen = "frozen_gates" in meta.get("as_run", ())
    more = {"gate_sparsity": meta.get("gate_sparsity"), "frozen_gates": frozen}
    return _of("attention", {**old, **more})


def _learning(meta: Mapping[str, Any], modulator: Mapping[str, Any]) -> dict[str, Any]:
    mode, window = meta.get("mode", "lookahead"), meta.get("window", 1)
    as_run = [name for name in meta.get("as_run", ()) if name != "frozen_gates"]
    if mode == "off":
        return {"kind": "off", "as_run": [x for x in as_run if x == "bias_corrected_decay"]}
    if mode == "online":
        kind = "windows" if window > 1 else "hypergradient"
        kind = "two_horizons" if meta.get("consecutive_lr") else kind
    else:
        kind = "lookahead"
    own = _of(kind, {"mean_speed": 1.0, **meta, "as_run": as_run})
    # What was a number then, and is what None stands for now.
    factors = kind == "hypergradient" and modulator["kind"] == "factors"
    usual = FACTORS_RATE if factors else META_RATES.get(str(own.get("optimizer")))
    if own.get("lr") == usual:
        own["lr"] = None
    if "mean_speed" in own and own["mean_speed"] == (
        1.0 if modulator.get("mean_preserving") else 0.5
    ):
        own["mean_speed"] = None
    return own
