"""The page's two pictures: every contestant's step, and how a step's cost grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.contestants import BASELINE

COLOURS = {
    BASELINE: "#4d4d4d",
    "AdamW foreach": "#999999",
    "MetaAdamW": "#0072b2",
    "MetaAdamW, every 8th step": "#56b4e9",
    "MetaAdamW online": "#009e73",
    "MetaAdamW in windows": "#e69f00",
    "authors' code": "#d55e00",
}


def save(figure: Figure, path: Path) -> None:
    """As SVG, the same bytes for the same numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})


def draw_steps(rows: list[dict[str, Any]], path: Path) -> None:
    """A bar for each contestant, with its quartiles, on a logarithmic scale."""
    figure = Figure(figsize=(8, 0.35 * len(rows) + 1), layout="constrained")
    axes = figure.subplots()
    base = next(row["median"] for row in rows if row["name"] == BASELINE)
    for place, row in enumerate(reversed(rows)):
        kind = row["name"].partition(", ")[0]
        axes.barh(place, row["ratio"], color=COLOURS.get(kind, "#cc79a7"), alpha=0.85)
        axes.plot([row["q1"] / base, row["q3"] / base], [place] * 2, color="black", linewidth=1)
        axes.text(row["ratio"], place, f"  {row['ratio']:.2f}", va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [row["name"] for row in reversed(rows)])
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel(f"time of step() over {BASELINE}; the line spans the quartiles")
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def draw_growth(sections: list[dict[str, Any]], path: Path) -> None:
    """Milliseconds of a step against each varied quantity."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    grid = figure.subplots(2, 2).flatten()
    for axes, section in zip(grid, sections, strict=True):
        _draw_quantity(axes, section)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    save(figure, path)


def _draw_quantity(axes: Axes, section: dict[str, Any]) -> None:
    points = section["points"]
    values = [point["value"] for point in points]
    for name in [row["name"] for row in points[0]["rows"]]:
        rows = [next(row for row in point["rows"] if row["name"] == name) for point in points]
        low, middle, high = ([1000 * row[key] for row in rows] for key in ("q1", "median", "q3"))
        axes.plot(values, middle, marker="o", markersize=3, color=COLOURS[name], label=name)
        axes.fill_between(values, low, high, color=COLOURS[name], alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    constant = [
        f"{points[0][key]:,} {key}"
        for key in ("parameters", "tensors", "groups")
        if key != section["varied"] and len({point[key] for point in points}) == 1
    ]
    name = "encoder layers" if section["varied"] == "layers" else section["varied"]
    axes.set_title(", ".join(constant), fontsize=10)
    axes.set_xlabel(name)
    axes.set_ylabel("ms a step")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
