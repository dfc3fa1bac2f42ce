"""``make bench``: measure everything on this machine, write the numbers and the page.

python -m benchmarks.report              # about ten minutes on two quiet cores
python -m benchmarks.report --quick      # seconds, for a test; the numbers mean nothing
python -m benchmarks.report --page-only  # the page again, from the numbers
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from benchmarks import end_to_end, memory, meta_update, step
from benchmarks.measure import environment, rounded
from benchmarks.page import write_page

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
SECTIONS = {
    "step": step,
    "meta_update": meta_update,
    "memory": memory,
    "end_to_end": end_to_end,
}


def measure(quick: bool) -> dict[str, Any]:
    """Every section in turn, under a progress bar."""
    results: dict[str, Any] = {"environment": environment() | {"quick": quick}}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn()) as progress:
        bars = {
            name: progress.add_task(name.replace("_", " "), total=section.UNITS, start=False)
            for name, section in SECTIONS.items()
        }
        for name, section in SECTIONS.items():
            progress.start_task(bars[name])
            results[name] = section.run(quick, _advance(progress, bars[name]))
            progress.update(bars[name], completed=section.UNITS)
    return results


def _advance(progress: Progress, bar: Any) -> Callable[[], None]:
    return lambda: progress.advance(bar)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    parser.add_argument("--page-only", action="store_true", help="measure nothing")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the numbers")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page; pictures lie beside it")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    path = options.results / "cpu.json"
    if not options.page_only:
        options.results.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rounded(measure(options.quick)), indent=1) + "\n")
    gpu = options.results / "gpu.json"
    write_page(
        json.loads(path.read_text()),
        json.loads(gpu.read_text()) if gpu.exists() else None,
        options.page,
    )
    print(f"{path}\n{options.page}")


if __name__ == "__main__":
    main()
