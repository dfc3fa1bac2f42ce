"""Tasks × arms × seeds × ablations as a plan of runs, each waiting for those it reads."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from metaadamw_bench.arms import get_arm
from metaadamw_bench.config import DoesNotFit, Precision, RunRequest
from metaadamw_bench.data import DataError
from metaadamw_bench.names import unknown
from metaadamw_bench.places import RATE, arm_place, run_place
from metaadamw_bench.references import References, fill_in, grid
from metaadamw_bench.resolving import resolve
from metaadamw_bench.runs import RunOptions, finished_summary, prepare
from metaadamw_bench.tasks import PreparedTask, Protocol, Size

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Job", "Plan", "Sweep", "plan", "read_sweep"]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a sweep file may hold, and what its flags are called.

    Attributes:
        ablation_arm: the arm that the ablations change, in addition to running as it is.
        lr_factors: learning rates in units of the task's, with which the arms run besides; arms
            that choose their own do not.

    The others are those of ``RunRequest``, several where that makes sense.
    """

    tasks: tuple[str, ...]
    arms: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    ablations: tuple[str, ...] = ()
    ablation_arm: str = "metaadamw-paper"
    lr_factors: tuple[float, ...] = ()
    protocol: Protocol = "clean"
    size: Size = "small"
    epochs: int | None = None
    max_steps: int | None = None
    threads: int = 1
    device: str = "cpu"
    precision: Precision = "fp32"

    def requests(self, task: str) -> Iterator[RunRequest]:
        """All runs of one task, without those that they read from."""
        variants: list[tuple[str, str | None]] = [(arm, None) for arm in self.arms]
        variants += [(self.ablation_arm, ablation) for ablation in self.ablations]
        for seed in self.seeds:
            for arm, ablation in variants:
                yield RunRequest(
                    task=task,
                    arm=arm,
                    seed=seed,
                    ablation=ablation,
                    protocol=self.protocol,
                    size=self.size,
                    epochs=self.epochs,
                    max_steps=self.max_steps,
                    threads=self.threads,
                    device=self.device,
                    precision=self.precision,
                )


def read_sweep(path: Path) -> dict[str, Any]:
    """What a TOML file says about a sweep.

    Raises:
        ValueError: it is no TOML, or holds something that a sweep does not have.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error
    types = {f.name: _KINDS.get(str(f.type), str) for f in fields(Sweep)}
    for name, value in found.items():
        if name not in types:
            raise ValueError(f"{path}: {unknown(name, types)}")
        kind = types[name]
        entries = value if isinstance(value, list) else [value]
        if isinstance(value, list) != (name in _LISTS) or not all(
            isinstance(entry, kind) and not isinstance(entry, bool) for entry in entries
        ):
            word = "number" if isinstance(kind, tuple) else kind.__name__
            wanted = f"a list of {word}" if name in _LISTS else word
            raise ValueError(f"{path}: {name} must be {wanted}, got {value!r}")
    return {name: tuple(v) if isinstance(v, list) else v for name, v in found.items()}


_LISTS = ("tasks", "arms", "seeds", "ablations", "lr_factors")
_KINDS: dict[str, Any] = {
    "int": int,
    "int | None": int,
    "tuple[int, ...]": int,
    "tuple[float, ...]": (int, float),
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of a sweep.

    Attributes:
        request: the run.
        place: its directory.
        needs: directories of runs that come before, successful or not.
        references: options of ``metaadamw run`` that name those.
        finished: whether it is done already.
    """

    request: RunRequest
    place: Path
    needs: tuple[Path, ...] = ()
    references: tuple[str, ...] = ()
    finished: bool = False

    @property
    def title(self) -> str:
        """Task, arm, seed, and what is tuned."""
        request = self.request
        arm = request.arm if request.ablation is None else f"{request.arm}+{request.ablation}"
        lr = "" if request.lr is None else f", lr {request.lr:g}"
        decay = "" if request.weight_decay is None else f", decay {request.weight_decay:g}"
        return f"{request.task}, {arm}{lr}{decay}, seed {request.seed}"

    def command(
        self, data_dir: Path | None, *, keep_checkpoint: bool, restart: bool = False
    ) -> list[str]:
        """The words after ``metaadamw``."""
        request = self.request
        words = ["run", request.task, "--out", str(self.place), "--quiet", *self.references]
        words += [] if keep_checkpoint else ["--no-keep-checkpoint"]
        words += ["--restart"] if restart else []
        options = {
            name: getattr(request, name)
            for name in ("arm", "seed", "protocol", "size", "ablation", "epochs", "max_steps", "lr")
        }
        for name in ("weight_decay", "threads", "device", "precision"):
            options[name] = getattr(request, name)
        options["data_dir"] = data_dir
        for name, value in options.items():
            if value is not None:
                words += [f"--{name.replace('_', '-')}", str(value)]
        return words


@dataclass
class Plan:
    """What a sweep comes to.

    Attributes:
        jobs: the runs by directory.
        failed: runs that cannot even be tried, and why.
        skipped: runs that would repeat another one under their own name, and why.
    """

    jobs: dict[Path, Job] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def plan(sweep: Sweep, root: Path, data_dir: Path | None) -> Plan:
    """Find out what there is to run and what has run already."""
    result = Plan()
    for name in sweep.tasks:
        requests = list(sweep.requests(name))
        try:
            task = prepare(requests[0], data_dir)
        except (DataError, ValueError) as error:
            result.failed[f"{name}, {len(requests)} runs"] = str(error)
            continue
        for request in requests:
            with _noting(result, request, run_place(root, request)):
                _add(result, request, root, task)
        for request, factor in product(requests, sweep.lr_factors):
            arm = get_arm(request.arm)
            if request.ablation is None and not arm.chooses_lr:
                other = replace(request, lr=float(f"{factor * task.lr:.6g}"))
                place = run_place(root, other, f"{RATE}{factor:g}")
                with _noting(result, other, place):
                    arm.check_installed()
                    _add_job(result, other, place, task)
    return result


@contextmanager
def _noting(result: Plan, request: RunRequest, place: Path) -> Iterator[None]:
    """A run that cannot be planned is noted, and the others go on."""
    try:
        yield
    except DoesNotFit as reason:
        if str(reason) not in result.skipped:
            result.skipped.append(str(reason))
    except ValueError as error:
        result.failed[Job(request=request, place=place).title] = str(error)


def _add(result: Plan, request: RunRequest, root: Path, task: PreparedTask) -> None:
    """Add a run to the plan, after those that it reads from."""
    arm, place = get_arm(request.arm), run_place(root, request)
    arm.check_installed()
    if place in result.jobs:
        return
    if arm.tunes is not None:
        tuning = arm_place(root, request) / "tuning"
        points = [(tuning / name, point) for name, point in grid(request, arm, task)]
        for point_place, point in points:
            _add_job(result, point, point_place, task)
        needs = tuple(point_place for point_place, _ in points)
        references = References(tuning=tuning)
        _add_later(result, request, place, task, needs, references, ("--tuning", str(tuning)))
    elif arm.matches is not None:
        matched = replace(request, arm=arm.matches)
        _add(result, matched, root, task)
        other = run_place(root, matched)
        references = References(tuning=place, matched_to=other)
        _add_later(result, request, place, task, (other,), references, ("--matched-to", str(other)))
    else:
        _add_job(result, request, place, task)


def _add_job(result: Plan, request: RunRequest, place: Path, task: PreparedTask) -> None:
    config = resolve(request, task, get_arm(request.arm))
    finished = finished_summary(place, config) is not None
    result.jobs.setdefault(place, Job(request=request, place=place, finished=finished))


def _add_later(
    result: Plan,
    request: RunRequest,
    place: Path,
    task: PreparedTask,
    needs: tuple[Path, ...],
    references: References,
    words: tuple[str, ...],
) -> None:
    """Add a run whose configuration is known only once others have finished."""
    finished = False
    if all(result.jobs[need].finished for need in needs):
        known = fill_in(request, references, RunOptions(shown=False), task)
        config = resolve(known, task, get_arm(request.arm))
        finished = finished_summary(place, config) is not None
    result.jobs[place] = Job(
        request=request, place=place, needs=needs, references=words, finished=finished
    )
