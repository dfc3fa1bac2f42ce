"""Carry-over: does a modulator that was trained on one task help on another?

On a donor task the Transformer in windows runs with a seed that no report has, and the weights it
ends with are kept. On another task it then starts with them, and beside that at the identity as it
always does, over the same seeds.

    python -m benchmarks.carry_over --data-dir DIR --out runs/carry-over --identity results

writes benchmarks/results/carry-over.json. Finished runs are not repeated; those that start at the
identity are taken from ``--identity`` where they are there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import nn

from metaadamw import MetaAdamW
from metaadamw.state import checkpoint
from metaadamw_bench.arm import Arm
from metaadamw_bench.arms import TUNING_SEED, get_arm
from metaadamw_bench.config import RunConfig, RunRequest
from metaadamw_bench.optimizers import Stepper
from metaadamw_bench.places import run_place
from metaadamw_bench.report.comparison import paired_statistics
from metaadamw_bench.report.setting import Setting
from metaadamw_bench.run_directory import CHECKPOINT, CONFIG, SUMMARY
from metaadamw_bench.runs import RunOptions, execute
from metaadamw_bench.stored_runs import StoredRun, find_runs

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "carry-over.json"
ARM = "metaadamw-slow-mean-attention"
PAIRS = (
    ("wikitext2", "multi30k"),
    ("multi30k", "wikitext2"),
    ("wikitext2", "cifar10"),
    ("multi30k", "imdb"),
)
"""Donor and task: the other language task, and from language to something else."""


class Carried:
    """Builds the arm's optimizer and gives its modulator the weights of a finished run.

    Args:
        donor: directory of that run, with its checkpoint.
    """

    def __init__(self, donor: Path) -> None:
        self.donor = donor

    def __call__(self, model: nn.Module, config: RunConfig) -> Stepper:
        """``Arm.build``."""
        optimizer = get_arm(ARM).build(model, config)
        assert isinstance(optimizer, MetaAdamW)
        optimizer.modulator.load_state_dict(self.weights())
        return optimizer

    def weights(self) -> dict[str, torch.Tensor]:
        """Those of the donor's modulator when its run was over."""
        saved = torch.load(self.donor / CHECKPOINT, map_location="cpu", weights_only=True)
        for group in saved["trainer"]["optimizer"]["param_groups"]:
            if (learned := group.get(checkpoint.KEY)) is not None:
                weights: dict[str, torch.Tensor] = learned["modulator"]
                return weights
        raise ValueError(f"{self.donor / CHECKPOINT} holds no modulator")


def carried_arm(donor: str, directory: Path) -> Arm:
    """The arm that starts with a donor's weights."""
    return replace(get_arm(ARM), name=f"{ARM}-from-{donor}", build=Carried(directory))


Summary = dict[str, Any]


def run(request: RunRequest, root: Path, options: RunOptions, donor: str | None) -> Summary:
    """A run from the identity or from a donor's weights."""
    arm = None
    if donor is not None:
        arm = carried_arm(donor, run_place(root, replace(request, task=donor, seed=TUNING_SEED)))
        request = replace(request, arm=arm.name)
    return execute(request, run_place(root, request), options, arm=arm)


def known(request: RunRequest, runs: Iterable[StoredRun]) -> Summary | None:
    """A run that somebody has done before."""
    place = run_place(Path(), request).parts
    for run in runs:
        if run.files.path.parts[-len(place) :] == place:
            config, summary = run.files.read_json(CONFIG), run.files.read_json(SUMMARY)
            same = config is not None and Setting.of(config).epochs == request.epochs
            if same and summary is not None and summary["status"] == "finished":
                return summary
    return None


def metric(summary: Summary) -> float:
    """On the test part; a demo task has none, and is judged by validation."""
    tested = summary["test_metric"]
    return float(summary["best_metric"] if tested is None else tested)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, help="where the data are")
    parser.add_argument("--out", type=Path, required=True, help="where the runs are kept")
    parser.add_argument(
        "--identity",
        type=Path,
        help="directory or packed file with runs that start at the identity",
    )
    parser.add_argument("--pairs", default=",".join(map(":".join, PAIRS)), help="donor:task, …")
    parser.add_argument("--seeds", type=int, default=5, help="paired seeds, from 0")
    parser.add_argument("--epochs", type=int, help="instead of the task's own number")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of the numbers")
    options = parser.parse_args(arguments)
    if options.identity and options.epochs:
        parser.error("--identity holds runs of the task's own number of epochs, not of --epochs")
    pairs = [tuple(pair.split(":")) for pair in options.pairs.split(",")]
    how = RunOptions(data_dir=options.data_dir, shown=False)
    identity = find_runs([options.identity]) if options.identity else []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:

        def begin(task: str, seed: int, donor: str | None = None) -> Future[Summary]:
            request = RunRequest(task=task, arm=ARM, seed=seed, epochs=options.epochs)
            found = known(request, identity) if donor is None else None
            if found is None:
                return pool.submit(run, request, options.out, how, donor)
            done: Future[Summary] = Future()
            done.set_result(found)
            return done

        donors = [begin(donor, TUNING_SEED) for donor in dict.fromkeys(d for d, _ in pairs)]
        for future in donors:
            future.result()
        seeds = range(options.seeds)
        futures = {
            (donor, task): [(begin(task, seed), begin(task, seed, donor)) for seed in seeds]
            for donor, task in pairs
        }
        rows = [
            comparison(donor, task, [(a.result(), b.result()) for a, b in found])
            for (donor, task), found in futures.items()
        ]
    options.results.write_text(json.dumps({"arm": ARM, "pairs": rows}, indent=1) + "\n")
    for row in rows:
        print(f"{row['donor']} → {row['task']}: {row['words']}")


def comparison(donor: str, task: str, summaries: list[tuple[Summary, Summary]]) -> dict[str, Any]:
    """A row of the results: gains in per cent of the mean at the identity."""
    identity, carried = ([metric(pair[side]) for pair in summaries] for side in (0, 1))
    sign = 1 if summaries[0][0]["metric_direction"] == "maximize" else -1
    gains = [100 * sign * (b - a) / fmean(identity) for a, b in zip(identity, carried, strict=True)]
    statistics = paired_statistics(gains)
    t = "–" if statistics.t is None else f"{statistics.t:.2g}"
    words = (
        f"{_spread(carried)} against {_spread(identity)} at the identity, "
        f"{statistics.mean:+.1f} %, p {t}, {len(gains)} seeds"
    )
    numbers = {"identity": identity, "carried": carried, "gains": gains}
    return {"donor": donor, "task": task, **numbers, **statistics._asdict(), "words": words}


def _spread(values: list[float]) -> str:
    return f"{fmean(values):.4g} ± {stdev(values) if len(values) > 1 else 0:.2g}"


if __name__ == "__main__":
    main()
