"""Time several contestants side by side in one process, and say on what machine."""

from __future__ import annotations

import gc
import os
import platform
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Call = Callable[[], object]
Clock = Callable[[Call], float]


@dataclass(frozen=True)
class Timing:
    """Seconds a call takes: the median over rounds, its quartiles, and the number of rounds."""

    median: float
    q1: float
    q3: float
    rounds: int


def wall_clock(call: Call) -> float:
    """Seconds one call takes on the host."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def cuda_clock(call: Call) -> float:
    """Seconds one call keeps the CUDA device busy.

    The device sleeps while the host enqueues the call, so that launching costs nothing; only a call
    that waits for the device is charged for the host's time.
    """
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    torch.cuda._sleep(100_000_000)  # cycles, about 50 ms
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def launch_clock(call: Call) -> float:
    """Seconds one call keeps the host busy, the device not being waited for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return wall_clock(call)


def summary(seconds: list[float], period: int = 1) -> Timing:
    """Median and quartiles of a call whose cost repeats after ``period`` calls.

    Every phase of the period has its own quantiles, and the phases are averaged: a call that is
    cheap seven times and dear the eighth is charged for the eighth.
    """
    periods = len(seconds) // period
    if periods == 0:
        raise ValueError(f"seconds must cover one period of {period}, got {len(seconds)} calls")
    phases = np.reshape(seconds[: periods * period], (periods, period))
    q1, median, q3 = (float(q) for q in np.quantile(phases, [0.25, 0.5, 0.75], axis=0).mean(axis=1))
    return Timing(median, q1, q3, periods * period)


def side_by_side(
    contestants: Mapping[str, Call],
    *,
    rounds: int,
    warmup: int = 2,
    periods: Mapping[str, int] | None = None,
    seconds: float = float("inf"),
    clock: Clock = wall_clock,
) -> dict[str, Timing]:
    """Call every contestant once a round, in a new order each round, so that all share the noise.

    Args:
        contestants: what to call, by name.
        rounds: rounds to measure; who has a longer period goes on to its end alone.
        warmup: rounds before, not measured.
        periods: calls after which a contestant's cost repeats; 1 where not given.
        seconds: no new round after this time, once every contestant had a whole period.
        clock: how a call is timed.
    """
    periods = dict(periods or {})
    shuffler = random.Random(0)
    order = list(contestants)
    times: dict[str, list[float]] = {name: [] for name in order}
    longest = max((periods.get(name, 1) for name in order), default=1)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for _ in range(warmup):
            for call in contestants.values():
                clock(call)
        deadline = time.perf_counter() + seconds
        for done in range(max(rounds, longest)):
            if done >= longest and time.perf_counter() > deadline:
                break
            shuffler.shuffle(order)
            for name in order:
                if done < max(rounds, periods.get(name, 1)):
                    times[name].append(clock(contestants[name]))
    finally:
        if collecting:
            gc.enable()
    return {name: summary(times[name], periods.get(name, 1)) for name in contestants}


def bandwidth(device: torch.device | str = "cpu", numel: int = 1 << 25) -> float:
    """Bytes a second that ``a += b`` moves: 12 an element, nothing read that is not counted."""
    a, b = torch.ones(numel, device=device), torch.ones(numel, device=device)
    clock = cuda_clock if a.is_cuda else wall_clock
    timing = side_by_side({"add": lambda: a.add_(b)}, rounds=10, clock=clock)
    return 12 * numel / timing["add"].median


def environment() -> dict[str, object]:
    """The machine and the versions behind the numbers."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def rounded(value: Any) -> Any:
    """Floats to six digits, everywhere: the rest is noise."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
