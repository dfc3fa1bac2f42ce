"""One seed, one thread, the data of this machine and a cache of the test run's own."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread_and_a_seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def data_dir():
    """The real data, if they are on this machine."""
    beside = Path(__file__).parents[2].parent / "shared" / "data"
    directory = Path(os.environ.get("METAADAMW_DATA") or beside)
    if not directory.is_dir():
        pytest.skip(f"METAADAMW_DATA is not set and {beside} does not exist")
    return directory


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory, worker_id):
    """A cache of the test run's own, shared by its processes."""
    base = tmp_path_factory.getbasetemp()
    directory = (base if worker_id == "master" else base.parent) / "cache"
    before = os.environ.get("METAADAMW_CACHE")
    os.environ["METAADAMW_CACHE"] = str(directory)
    yield directory
    os.environ.pop("METAADAMW_CACHE")
    if before is not None:
        os.environ["METAADAMW_CACHE"] = before
