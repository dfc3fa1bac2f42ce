"""What runs of one cell have in common: every setting but the seed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from metaadamw_bench.report.setting import Cell
from metaadamw_bench.today import settings_of_today

__all__ = [
    "FILLED_IN",
    "Settings",
    "arm_settings",
    "difference",
    "learning_rate",
    "only_the_rate_differs",
    "settings_of",
    "usual_settings",
]

Settings = Mapping[str, Any]

# Of an arm's settings: what a matched or replaying arm takes from another run of the same seed.
FILLED_IN = ("mean_alpha", "factors")
_NOT_SETTINGS = ("seed", "key", "version", "arm_settings")
# What a tuned arm finds out.
_TUNED = ("lr", "weight_decay")


def learning_rate(config: Settings) -> float:
    """The learning rate of a ``config.json``, before an arm's own factor."""
    factor = config["arm_settings"].get("mean_alpha") or 1.0
    return float(f"{config['lr'] / factor:.6g}")


def arm_settings(given: Settings) -> dict[str, Any]:
    """An arm's settings as ``--set`` names them, without what another run has filled in.

    What an older version did not know yet, it left at its default.
    """
    complete = settings_of_today(given)
    plain = json.loads(json.dumps({k: v for k, v in complete.items() if k not in FILLED_IN}))
    return dict(_flat(plain))


def _flat(content: Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def settings_of(config: Settings) -> Settings:
    """What runs of one cell must agree on, from a ``config.json``."""
    own = config["arm_settings"]
    ignored = _NOT_SETTINGS + (_TUNED if "tuning_grid" in own else ())
    settings = {**config, "lr": learning_rate(config)}
    return {k: v for k, v in settings.items() if k not in ignored} | arm_settings(own)


class _Run(Protocol):
    """What is asked of a finished run."""

    @property
    def cell(self) -> Cell: ...
    @property
    def settings(self) -> Settings: ...
    @property
    def sweep(self) -> str | None: ...


def usual_settings(runs: Iterable[_Run]) -> dict[Cell, Settings]:
    """The settings that most runs of each cell have; where a sweep has runs, most of those."""
    votes: dict[Cell, dict[str, tuple[int, int, Settings]]] = {}
    for run in runs:
        found = votes.setdefault(run.cell, {})
        name = json.dumps(run.settings, sort_keys=True)
        swept, every, _ = found.get(name, (0, 0, run.settings))
        found[name] = (swept + (run.sweep is not None), every + 1, run.settings)
    return {
        cell: max(found.values(), key=lambda vote: vote[:2])[2] for cell, found in votes.items()
    }


def difference(own: Settings, usual: Settings) -> str:
    """Every setting that is not the usual one, with both values; empty if there is none."""
    return "; ".join(
        f"other {name}: {_shown(own.get(name))}, the others have {_shown(usual.get(name))}"
        for name in _differing(own, usual)
    )


def only_the_rate_differs(own: Settings, usual: Settings) -> bool:
    """Whether the learning rate differs, and nothing but what an arm derives from it."""
    names = _differing(own, usual)
    if names == ["lr", "weight_decay"]:  # an arm with a decay per step
        decays = [settings["lr"] * settings["weight_decay"] for settings in (own, usual)]
        return math.isclose(*decays, rel_tol=1e-5)
    return names == ["lr"]


def _differing(own: Settings, usual: Settings) -> list[str]:
    return sorted(name for name in {**usual, **own} if own.get(name) != usual.get(name))


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
