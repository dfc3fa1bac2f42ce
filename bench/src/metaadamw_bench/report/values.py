"""All numbers of a report as plain values, for ``statistics.json``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from metaadamw_bench.printable import printable
from metaadamw_bench.report.claims import claims
from metaadamw_bench.report.collection import BASELINE, Collection, mean_and_deviation
from metaadamw_bench.report.comparison import BUDGETS, Comparison
from metaadamw_bench.report.runs import LeftOut
from metaadamw_bench.report.setting import Cell

__all__ = ["values"]

# Far more than the data carry, and fewer than would tell one numpy from the next.
_DIGITS = 10


def values(collections: Sequence[Collection], left_out: Sequence[LeftOut]) -> dict[str, Any]:
    """Cells, comparisons, claims and what was left out."""
    content: dict[str, Any] = {
        "claims": [
            {"claim": verdict.claim, "results": [result._asdict() for result in verdict.results]}
            for verdict in claims(collections)
        ],
        "settings": {collection.setting.slug: _setting(collection) for collection in collections},
        "left_out": [{"directory": entry.path, "reason": entry.reason} for entry in left_out],
    }
    rounded: dict[str, Any] = _rounded(content)
    return rounded


def _setting(collection: Collection) -> dict[str, Any]:
    return {
        "cells": list(_cells(collection)),
        "comparisons": list(_comparisons(collection)),
    }


def _cells(collection: Collection) -> Iterator[dict[str, Any]]:
    cells: dict[Cell, None] = dict.fromkeys(run.cell for run in collection.runs)
    for cell in cells:
        runs = [run for run in collection.runs if run.cell == cell]
        tested = [run.test_metric for run in runs if run.test_metric is not None]
        mean, deviation = mean_and_deviation(run.best_metric for run in runs)
        yield {
            "task": cell.task,
            "arm": cell.arm,
            "ablation": cell.ablation,
            "metric": runs[0].metric_name,
            "direction": runs[0].direction,
            "failed": collection.lost(*cell[1:]),
            "mean_best_metric": mean,
            "sd_best_metric": deviation,
            "mean_test_metric": mean_and_deviation(tested)[0] if tested else None,
            "sd_test_metric": mean_and_deviation(tested)[1] if tested else None,
            "runs": [
                {
                    "seed": run.seed,
                    "directory": run.path,
                    "best_metric": run.best_metric,
                    "test_metric": run.test_metric,
                    "epochs": run.epochs,
                    "steps": run.steps,
                    "stopped_early": run.stopped_early,
                    "lr": run.rate,
                    "weight_decay": run.weight_decay,
                    "seconds": run.seconds,
                }
                for run in runs
            ],
        }


def _comparisons(collection: Collection) -> Iterator[dict[str, Any]]:
    """Contenders against baselines, every arm against AdamW, ablations against their arm."""
    for arm in collection.arms:
        baselines = collection.baselines(arm) if arm in collection.contenders else [BASELINE]
        for baseline in baselines:
            if baseline != arm:
                for budget in BUDGETS:
                    for found in collection.compare(arm, baseline, budget).values():
                        yield _comparison(found, None)
    variants = dict.fromkeys(run.cell[2:] for run in collection.runs if run.cell.ablation)
    for arm, ablation in variants:
        for found in collection.compare(arm, arm, "whole run", ablation).values():
            yield _comparison(found, ablation)


def _comparison(found: Comparison, ablation: str | None) -> dict[str, Any]:
    return {
        **asdict(found),
        "ablation": ablation,
        "statistics": found.statistics._asdict(),
        "percent": found.statistics.mean * found.percent,
        "verdict": found.verdict,
    }


def _rounded(content: Any) -> Any:
    if isinstance(content, float):
        return float(f"{content:.{_DIGITS}g}") if math.isfinite(content) else None
    if isinstance(content, str):
        return printable(content)
    if isinstance(content, dict):
        return {key: _rounded(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_rounded(value) for value in content]
    return content
