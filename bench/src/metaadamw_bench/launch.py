"""Where the runs of a sweep are started: processes of this machine, or a Ray cluster."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from metaadamw_bench.sweep import Job

__all__ = ["Start", "launcher", "run_all"]

# Starts a run, given the words after ``metaadamw``; the result is what went wrong, or None.
Start = Callable[[Sequence[str], int], "Future[str | None]"]


def run_all(
    jobs: Mapping[Path, Job], commands: Mapping[Path, Sequence[str]], start: Start
) -> Iterator[tuple[Job, str | None]]:
    """Start every run that has not finished, once those that it needs are over.

    Yields:
        Each run as it ends, and what went wrong, or None.
    """
    waiting = {place: job for place, job in jobs.items() if not job.finished}
    running: dict[Future[str | None], Path] = {}
    while waiting or running:
        busy = {*waiting, *running.values()}
        for place, job in list(waiting.items()):
            if not busy.intersection(job.needs):
                running[start(commands[place], job.request.threads)] = place
                del waiting[place]
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            yield jobs[running.pop(future)], _error(future)


def _error(future: Future[str | None]) -> str | None:
    """What went wrong with a run, or with the machine or the process that was to start it."""
    error = future.exception()
    if error is None:
        return future.result()
    said = str(error).strip().splitlines()  # a cluster sends the whole traceback
    return f"{type(error).__name__}: {said[-1]}" if said else type(error).__name__


def _run(words: Sequence[str], threads: int, started: Callable[[Any], None]) -> str | None:
    """Run ``metaadamw`` in a process of its own; what went wrong, or None."""
    process = subprocess.Popen(
        [sys.executable, "-m", "metaadamw_bench", *words],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    started(process)
    _, errors = process.communicate()
    if process.returncode == 0:
        return None
    said = [line for line in errors.splitlines() if line.strip()]
    last = said[-1].removeprefix("metaadamw: ") if said else "no message"
    ended = f" (ended by signal {-process.returncode})" if process.returncode < 0 else ""
    return last + ended


@contextmanager
def local_processes(count: int) -> Iterator[Start]:
    """So many processes at a time; an interruption ends them, and so does SIGTERM."""
    processes: set[subprocess.Popen[str]] = set()
    lock, closed = threading.Lock(), threading.Event()

    def started(process: subprocess.Popen[str]) -> None:
        with lock:
            processes.add(process)
            if closed.is_set():
                process.terminate()

    def work(words: Sequence[str], threads: int) -> str | None:
        return "interrupted" if closed.is_set() else _run(words, threads, started)

    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(count))

        def stop() -> None:
            with lock:
                closed.set()
                for process in processes:
                    process.terminate()

        # Runs before the pool waits for its threads; nothing is left to end after a whole sweep.
        stack.callback(stop)
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        stack.callback(signal.signal, signal.SIGTERM, before)
        yield lambda words, threads: pool.submit(work, words, threads)


@contextmanager
def ray_cluster(address: str) -> Iterator[Start]:
    """A Ray cluster; "local" starts one on this machine.

    Its machines must see the directories of runs and data under the same paths, and have this
    package installed.
    """
    try:
        ray = importlib.import_module("ray")
    except ImportError:
        raise ValueError(
            "--ray needs the package ray: pip install './bench[ray]' in a clone of metaadamw"
        ) from None
    try:
        _check_listening(address)
        ray.init(
            address=None if address == "local" else address,
            include_dashboard=False if address == "local" else None,
            log_to_driver=False,
            logging_level="ERROR",
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"no Ray cluster at {address!r}: {error}") from error
    directory = Path.cwd()

    def work(words: Sequence[str], threads: int) -> str | None:
        os.chdir(directory)
        return _run(words, threads, lambda process: None)

    remote = ray.remote(max_retries=0)(work)

    def start(words: Sequence[str], threads: int) -> Future[str | None]:
        gpus = 1 if "cuda" in words else 0
        future: Future[str | None] = (
            remote.options(num_cpus=threads, num_gpus=gpus).remote(list(words), threads).future()
        )
        return future

    try:
        yield start
    finally:
        ray.shutdown()


def _check_listening(address: str) -> None:
    """Raise ``OSError`` if nobody listens at HOST:PORT, where Ray would try on for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def launcher(jobs: int, ray_address: str | None) -> AbstractContextManager[Start]:
    """Where to start runs, as the command line says."""
    return local_processes(jobs) if ray_address is None else ray_cluster(ray_address)
