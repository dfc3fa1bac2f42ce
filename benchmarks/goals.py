"""The goals, and where among the results each one's number is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.memory import REUSE, WIDE
from benchmarks.meta_update import PRODUCTS

Results = dict[str, Any]
Number = Callable[[Results], float | None]


@dataclass(frozen=True)
class Goal:
    """One line of the table.

    Attributes:
        what: the quantity.
        limit: it should not be larger than this.
        unit: its unit, as written after a number.
        measured: finds it in the results; None where it was not measured.
        authors: the same for the authors' code.
    """

    what: str
    limit: float
    unit: str
    measured: Number
    authors: Number = lambda _: None

    def verdict(self, results: Results) -> str:
        """Whether it was reached, or by how much not."""
        value = self.measured(results)
        if value is None:
            return "not measured"
        if round(value, 2) <= self.limit:
            return "reached"
        excess = 100 * (value / self.limit - 1)
        return f"missed by {excess:.{int(excess < 10)}f} %"


def step_ratio(name: str) -> Number:
    """Step of a contestant on MiniGPT, over fused AdamW's."""
    return lambda results: _ratio(results["step"]["model"]["rows"], name)


def large_ratio(name: str) -> Number:
    """The same at the largest number of parameters."""

    def find(results: Results) -> float | None:
        (by_parameters,) = (g for g in results["step"]["growth"] if g["varied"] == "parameters")
        return _ratio(by_parameters["points"][-1]["rows"], name)

    return find


def _ratio(rows: list[Results], name: str) -> float | None:
    return next((row["ratio"] for row in rows if row["name"] == name), None)


def passes(name: str) -> Number:
    """A meta-update in forward and backward passes."""
    return lambda results: results["meta_update"].get(name, {}).get("passes")


def peak_ratio(mode: str) -> Number:
    """Largest ratio over the tasks of a meta-update's peak memory to training's."""

    def find(results: Results) -> float | None:
        found = [
            modes[mode]["meta_update"] / modes[mode]["training"]
            for task, modes in results["memory"].items()
            if task != WIDE and "meta_update" in modes.get(mode, {})
        ]
        return max(found, default=None)

    return find


def copies(mode: str) -> Number:
    """What a meta-update takes beyond training, in copies of the parameters that dominate."""

    def find(results: Results) -> float | None:
        row = results["memory"][WIDE].get(mode, {})
        if "meta_update" not in row:
            return None
        return (row["meta_update"] - row["training"]) / row["parameters"]

    return find


def overhead(task: str, arm: str = "metaadamw") -> Number:
    """Per cent that an epoch takes longer than with AdamW."""

    def find(results: Results) -> float | None:
        share = results["end_to_end"].get(task, {}).get("overhead", {}).get(arm)
        return None if share is None else 100 * share

    return find


TITLES = {
    "etth1": "ETTh1",
    "wikitext2": "WikiText-2",
    "multi30k": "Multi30k",
    "cifar10": "CIFAR-10",
    "imdb": "IMDB",
}


def _goals() -> Iterator[Goal]:
    eight, many = "8 layers", "128 layers"
    yield Goal(
        "step, MiniGPT, 8 encoder layers",
        2.0,
        " ×",
        step_ratio(f"MetaAdamW, {eight}"),
        step_ratio(f"authors' code, {eight}"),
    )
    authors_many = step_ratio(f"authors' code, {many}")
    yield Goal(
        "step, MiniGPT, 128 layers", 5.0, " ×", step_ratio(f"MetaAdamW, {many}"), authors_many
    )
    held = step_ratio(f"MetaAdamW, {many}, every 8th step")
    yield Goal("… refreshed every 8th step", 1.3, " ×", held, authors_many)
    authors_large = large_ratio("authors' code")
    yield Goal(
        "step, 100 M parameters in 150 tensors", 1.5, " ×", large_ratio("MetaAdamW"), authors_large
    )
    for where, number in (
        ("MiniGPT, 2 layers", step_ratio("MetaAdamW online, 2 layers")),
        ("MiniGPT, 8 layers", step_ratio("MetaAdamW online, 8 layers")),
        ("100 M parameters", large_ratio("MetaAdamW online")),
        ("MiniGPT, in windows", step_ratio("MetaAdamW in windows")),
        ("100 M parameters, in windows", large_ratio("MetaAdamW in windows")),
        ("MiniGPT, at two horizons", step_ratio("MetaAdamW at two horizons")),
    ):
        yield Goal(f"online step, {where}", 2.5, " ×", number)
    limits = {"exact": 5.6, "finite_difference": 5.5, "forward_difference": 4.5}
    for hvp, label in PRODUCTS.items():
        authors = passes("authors' code")
        yield Goal(f"meta-update, {label}", limits[hvp], " passes", passes(label), authors)
        reused = passes(f"{label}, training gradient as B1")
        yield Goal("… training gradient as B1", limits[hvp] - 1, " passes", reused, authors)
    for mode, label in (("auto", "default"), ("finite_difference", "central difference")):
        yield Goal(
            f"peak memory of a meta-update, worst of five tasks, {label}",
            1.3,
            " ×",
            peak_ratio(mode),
            peak_ratio("authors"),
        )
    for hvp, label in PRODUCTS.items():
        yield Goal(
            f"… where parameters dominate, beyond training, {label}",
            3.0,
            " P",
            copies(hvp),
            copies("authors"),
        )
        yield Goal("… training gradient as B1", 3.0, " P", copies(hvp + REUSE), copies("authors"))
    for task, title in TITLES.items():
        limit = 12.0 if task == "imdb" else 3.0
        authors = overhead(task, "authors")
        yield Goal(f"epoch of {title}, paper's preset", limit, " %", overhead(task), authors)
        yield Goal(
            "… training gradient as B1", limit, " %", overhead(task, "metaadamw_lean"), authors
        )
        half = overhead(task, "metaadamw_half")
        yield Goal("… and batches half as large", limit, " %", half, authors)


GOALS = tuple(_goals())
