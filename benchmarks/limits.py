"""What limits a step, a meta-update, memory and epochs, in numbers of the same run."""

from __future__ import annotations

from typing import Any

from benchmarks.contestants import BASELINE
from benchmarks.goals import TITLES, peak_ratio
from benchmarks.memory import WIDE

Results = dict[str, Any]


def limits(results: Results) -> str:
    """A section of the page."""
    parts = (
        _online(results["step"]["model"]),
        _meta_updates(results["meta_update"]),
        _memory(results),
        _epochs(results["end_to_end"]),
    )
    return "## What limits them\n\n" + "\n".join(part for part in parts if part)


def evaluations(section: Results) -> tuple[float, float]:
    """Passes of a meta-update without any optimizer: exact, central difference."""
    forward, product = section["forward"]["passes"], section["gradient and product"]["passes"]
    return 1 + product + 1 + forward, 4 + 1 + forward


def _online(model: Results) -> str:
    base = next(row["median"] for row in model["rows"] if row["name"] == BASELINE)
    reading, learning = (model["online"][part]["median"] for part in ("reading", "learning"))
    return f"""\
- **Online steps.** The signal needs the gradient, both moments and the parameters before they
  change: reading them takes {1000 * reading:.2f} ms on MiniGPT, {reading / base:.1f} times a step
  of fused AdamW. Learning, a gradient through the Transformer and a step of Adam, takes
  {1000 * learning:.2f} ms, {learning / base:.1f} times; it does not grow with the model."""


def _meta_updates(section: Results) -> str:
    alone = evaluations(section)
    measured = (section[name]["passes"] for name in ("exact product", "central difference"))
    ours = [passes - least for passes, least in zip(measured, alone, strict=True)]
    return f"""\
- **Meta-updates.** The evaluations alone, without any optimizer, take {alone[0]:.2f} passes (exact)
  and {alone[1]:.2f} (central), sums of medians; the meta-updates take {_signed(ours[0])} and
  {_signed(ours[1])} beside that, which includes the noise of both. An exact product runs
  through kernels that can be differentiated twice, which cost the model itself more."""


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _memory(results: Results) -> str:
    wide = results["memory"].get(WIDE, {})
    exact, central = (wide.get(mode, {}) for mode in ("exact", "finite_difference"))
    peaks = [peak_ratio(mode)(results) for mode in ("auto", "finite_difference")]
    if "meta_update" not in exact or "meta_update" not in central or None in peaks:
        return ""
    graph = (exact["meta_update"] - central["meta_update"]) / exact["parameters"]
    return f"""\
- **Memory.** An exact product, the default, keeps the graph of a gradient, with all activations of
  forward and backward pass: {peaks[0]:.2f} × training on the worst of the five tasks against
  {peaks[1]:.2f} × with central differences (`hvp="finite_difference"`, which the paper's presets
  take); and where parameters dominate {graph:.1f} P more. The three copies that differences need
  are θ, the gradient on B1 and that of a pass."""


def _epochs(tasks: Results) -> str:
    rows = []
    for name in ("wikitext2", "imdb"):
        task = tasks[name]
        update, parts = task["meta_updates"]["metaadamw"], task["parts"]
        passes = update["median"] / parts["forward_backward"]["median"]
        rows.append(
            f"{TITLES[name]}: {passes:.1f} passes in {task['every']} steps, "
            f"{100 * passes / task['every']:.1f} %"
        )
    return f"""\
- **Epochs.** What a single meta-update is of the steps between two of them, in the paper's schedule
  (`every` makes them rarer): {"; ".join(rows)}."""
