"""Arms that follow other runs: tuned on a grid, matched to a mean α, or replaying the factors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metaadamw_bench.arm import Arm
from metaadamw_bench.arms import TUNING_GRID, TUNING_SEED, get_arm
from metaadamw_bench.config import RunRequest
from metaadamw_bench.replay import recorded_factors
from metaadamw_bench.run_directory import MODULATION, SUMMARY, RunDirectory
from metaadamw_bench.runs import Diverged, RunOptions, execute
from metaadamw_bench.stored_runs import open_run
from metaadamw_bench.tasks import PreparedTask

__all__ = ["References", "fill_in", "grid"]

TUNING = "tuning.json"


@dataclass(frozen=True, kw_only=True)
class References:
    """Where the other runs are.

    Attributes:
        tuning: directory of the grid of a tuned arm.
        matched_to: run directory or packed run whose mean α, or whose factors, are taken.
        mean_alpha: the mean α itself.
    """

    tuning: Path
    matched_to: Path | None = None
    mean_alpha: float | None = None


def grid(request: RunRequest, arm: Arm, task: PreparedTask) -> Iterator[tuple[str, RunRequest]]:
    """The runs that tune an arm, each with the name of its directory."""
    assert arm.tunes is not None
    for factor in TUNING_GRID["lr"]:
        for weight_decay in TUNING_GRID["weight_decay"]:
            lr = float(f"{factor * task.lr:.6g}")
            point = replace(
                request, arm=arm.tunes, seed=TUNING_SEED, lr=lr, weight_decay=weight_decay
            )
            yield f"lr{lr:g}-wd{weight_decay:g}", point


def fill_in(
    request: RunRequest, references: References, options: RunOptions, task: PreparedTask
) -> RunRequest:
    """The request with what other runs have to say; runs of a grid that are missing are made.

    Raises:
        ValueError: the runs are not there or do not fit, or the seed is that of the tuning.
    """
    arm = get_arm(request.arm)
    if arm.matches is not None:
        settings = {**arm.settings(task), **request.changes}
        changes = _followed(arm, references, request, settings)
        return replace(request, changes={**request.changes, **changes})
    if arm.tunes is not None:
        if request.lr is not None or request.weight_decay is not None:
            raise ValueError(f"arm {arm.name} chooses its learning rate and weight decay itself")
        if request.seed == TUNING_SEED:
            raise ValueError(f"seed {TUNING_SEED} is what {arm.name} is tuned on; take another")
        lr, weight_decay = _tune(request, arm, references.tuning, options, task)
        return replace(request, lr=lr, weight_decay=weight_decay)
    return request


def _followed(
    arm: Arm, references: References, request: RunRequest, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings that a matched arm takes from another run; none if that is not named."""
    directory = references.matched_to
    if "mean_alpha" in settings and references.mean_alpha is not None:
        return {"mean_alpha": references.mean_alpha}
    if directory is None:
        return {}
    summary = _summary(directory, str(arm.matches), request)
    if "mean_alpha" in settings:
        return {"mean_alpha": float(summary["mean_alpha"])}
    return {"factors": recorded_factors(directory / MODULATION, first=settings.get("window"))}


def _summary(directory: Path, arm: str, request: RunRequest) -> dict[str, Any]:
    """The summary of a finished run of this arm on the same task, with the same seed."""
    summary = open_run(directory).read_json(SUMMARY) or {}
    expected = {
        "task": request.task,
        "arm": arm,
        "seed": request.seed,
        "protocol": request.protocol,
        "size": request.size,
        "ablation": None,
        "status": "finished",
    }
    for name, value in expected.items():
        if summary.get(name) != value:
            raise ValueError(
                f"{directory} must hold a finished run of {arm} on {request.task}, "
                f"its {name} is {summary.get(name)!r}, not {value!r}"
            )
    return summary


def _tune(
    request: RunRequest, arm: Arm, directory: Path, options: RunOptions, task: PreparedTask
) -> tuple[float, float]:
    points: list[dict[str, Any]] = []
    for name, point in grid(request, arm, task):
        place = directory / name
        before = RunDirectory(place).read_json(SUMMARY) or {}
        # The grid is shared by every seed: none of them does it anew.
        own = replace(options, restart=options.restart and before.get("status") != "finished")
        if not str(before.get("error")).startswith(Diverged.__name__):
            with suppress(Diverged):
                execute(point, place, own, task)
        summary = RunDirectory(place).read_json(SUMMARY) or {}
        points.append(
            {
                "lr": point.lr,
                "weight_decay": point.weight_decay,
                "status": summary.get("status"),
                "best_metric": summary.get("best_metric"),
            }
        )
    sign = 1 if task.metric.direction == "minimize" else -1
    finished = [p for p in points if p["status"] == "finished" and p["best_metric"] is not None]
    if not finished:
        raise ValueError(f"no run of the grid in {directory} has finished")
    best = min(finished, key=lambda point: sign * point["best_metric"])
    shared = RunDirectory(directory)
    with shared.locked():  # every seed of a sweep writes the same
        shared.write_json(
            TUNING,
            {
                "task": request.task,
                "protocol": request.protocol,
                "size": request.size,
                "seed": TUNING_SEED,
                "metric_name": task.metric.name,
                "metric_direction": task.metric.direction,
                "points": points,
                "best": {"lr": best["lr"], "weight_decay": best["weight_decay"]},
            },
        )
    return best["lr"], best["weight_decay"]
