"""What a run directory says of its run, as text for a terminal; also while it is being written."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from metaadamw_bench.run_directory import CONFIG, METRICS, MODULATION, SUMMARY
from metaadamw_bench.run_files import RunFiles
from metaadamw_bench.stored_runs import open_run

__all__ = ["Sight", "draw", "look"]

_SPARKS = "▁▂▃▄▅▆▇█"
_TERMS = ("total", "gradient_alignment", "loss_decrease", "generalization_gap")
_WIDTH = 48  # with the labels before it, a line of a terminal
_HALF_BAR = 6


@dataclass(frozen=True)
class Sight:
    """What there is to see of a run.

    Attributes:
        config: its configuration.
        status: "running" until there is a summary, then what that says.
        losses: training losses, oldest first.
        step: the last step that was written down.
        evaluations: of the validation part, as written down.
        metas: meta-updates, as written down.
        factors: the last α and β of every group.
    """

    config: dict[str, Any]
    status: str
    losses: list[float]
    step: int
    evaluations: list[dict[str, Any]]
    metas: list[dict[str, Any]]
    factors: dict[str, tuple[float, float]]


def look(directory: Path) -> Sight | None:
    """Read a run directory or a packed run; None if no run has begun in it."""
    run = open_run(directory)
    config = run.read_json(CONFIG)
    if config is None:
        return None
    entries = [json.loads(line) for line in _lines(run, METRICS)]
    kinds = {
        kind: [entry for entry in entries if entry["kind"] == kind]
        for kind in ("train", "evaluation", "meta")
    }
    summary = run.read_json(SUMMARY) or {"status": "running"}
    return Sight(
        config=config,
        status=summary["status"],
        losses=[entry["loss"] for entry in kinds["train"] if entry["loss"] is not None],
        step=max((entry["step"] for entry in entries), default=0),
        evaluations=kinds["evaluation"],
        metas=kinds["meta"],
        factors=_factors(_lines(run, MODULATION)),
    )


def _lines(run: RunFiles, name: str) -> list[str]:
    """The lines that are complete."""
    try:
        text = run.read_text(name)
    except FileNotFoundError:
        return []
    return text[: text.rfind("\n") + 1].splitlines()


def _factors(lines: Sequence[str]) -> dict[str, tuple[float, float]]:
    if len(lines) < 2:
        return {}
    header, row = csv.reader((lines[0], lines[-1]))
    last = dict(zip(header, map(float, row), strict=True))
    groups = [name.removesuffix("/alpha") for name in header if name.endswith("/alpha")]
    return {group: (last[f"{group}/alpha"], last[f"{group}/beta"]) for group in groups}


def draw(sight: Sight) -> RenderableType:
    """The picture of a run."""
    config = sight.config
    steps = config["steps_per_epoch"] * config["epochs"]
    last_step = min(steps, config["max_steps"] or steps)
    title = Text(f"{config['task']}, {config['arm']}, seed {config['seed']}", style="bold")
    title.append(f"   {sight.status}, step {sight.step} of at most {last_step}", style="dim")
    numbers = Table.grid(padding=(0, 2))
    numbers.add_row("steps", str(sight.step), ProgressBar(last_step, sight.step, width=_WIDTH))
    if sight.losses:
        recent = sight.losses[-_WIDTH:]
        numbers.add_row("training loss", f"{recent[-1]:.4g}", sparks(recent))
    if sight.evaluations:
        for name in ("loss", "metric"):
            history = [e[name] for e in sight.evaluations if e[name] is not None][-_WIDTH:]
            if history:
                numbers.add_row(f"validation {name}", f"{history[-1]:.5g}", sparks(history))
    if sight.metas:
        applied = sum(entry["applied"] for entry in sight.metas)
        skipped = len(sight.metas) - applied
        numbers.add_row("meta-updates", str(applied), f"{skipped} skipped" if skipped else "")
        for term in _TERMS:
            values = [e[term] for e in sight.metas if e[term] is not None][-_WIDTH:]
            if values:
                label = f"  {term.replace('_', ' ')}"
                numbers.add_row(label, f"{values[-1]:.4g}", sparks(values))
    parts: list[RenderableType] = [title, numbers]
    if sight.factors:
        parts.append(_bars(sight.factors))
    return Group(*parts)


def _bars(factors: dict[str, tuple[float, float]]) -> Table:
    spread = max(abs(value - 1) for pair in factors.values() for value in pair)
    table = Table(box=None, padding=(0, 1), header_style="bold")
    table.add_column("group", overflow="fold")
    for symbol in ("α", "β"):
        table.add_column(symbol, justify="right", no_wrap=True)
        table.add_column(f"1 ± {spread:.2g}", justify="center", no_wrap=True, header_style="dim")
    for group, pair in factors.items():
        cells = [cell for value in pair for cell in (f"{value:.4f}", bar(value, spread))]
        table.add_row(group, *cells)
    return table


def bar(value: float, spread: float) -> Text:
    """A bar from 1 to ``value``: to the left below, to the right above."""
    cells = round(_HALF_BAR * abs(value - 1) / spread) if spread else 0
    filled, empty = "█" * cells, " " * (_HALF_BAR - cells)
    if value < 1:
        return Text.assemble(empty, (filled, "blue"), "│", " " * _HALF_BAR)
    return Text.assemble(" " * _HALF_BAR, "│", (filled, "red"), empty)


def sparks(values: Sequence[float]) -> str:
    """The values as a line of small columns, the lowest and highest at the ends of the scale."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    scale = (len(_SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(
        _SPARKS[round((value - low) * scale)] if math.isfinite(value) else " " for value in values
    )
