"""Kernels are compiled once, and without a compiler nothing is lost but speed."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch

from metaadamw import Hypergradient, MetaAdamW
from metaadamw.kernels import cpu
from metaadamw.update.one_pass import rounding


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """No kernel has been loaded yet, and the cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("METAADAMW_KERNELS", raising=False)
    forget()
    yield tmp_path / "metaadamw"
    forget()


def forget():
    for found in (cpu.library, rounding):
        found.cache_clear()


def test_compiled_once_for_each_precision(fresh, monkeypatch):
    assert cpu.library(torch.float32) is not None
    assert cpu.library(torch.float64) is not None
    built = {path: path.stat().st_mtime_ns for path in fresh.iterdir()}
    assert len(built) == 2
    cpu.library.cache_clear()
    monkeypatch.setattr(subprocess, "run", None)  # would fail
    assert cpu.library(torch.float32) is not None
    assert {path: path.stat().st_mtime_ns for path in fresh.iterdir()} == built
    assert cpu.library(torch.bfloat16) is None


def test_many_processes_may_compile_at_once(fresh):
    words = "import torch; from metaadamw.kernels.cpu import library as l; assert l(torch.float64)"
    running = [subprocess.Popen([sys.executable, "-c", words]) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert len(list(fresh.iterdir())) == 1


def test_a_compiler_with_options(fresh, monkeypatch):
    monkeypatch.setenv("CC", "cc -pipe")
    assert cpu.library(torch.float64) is not None
    assert len(list(fresh.iterdir())) == 1


def failing_compiler(place):
    place.write_text("#!/bin/sh\necho no >&2\nexit 1\n")
    place.chmod(0o755)
    return str(place)


@pytest.mark.parametrize("why", ["switched off", "no compiler", "it fails", "no cache"])
def test_without_kernels_the_numbers_are_the_same(fresh, monkeypatch, tmp_path, why):
    expected = trajectory()
    forget()
    for path in fresh.iterdir():
        path.unlink()
    match why:
        case "switched off":
            monkeypatch.setenv("METAADAMW_KERNELS", "0")
        case "no compiler":
            monkeypatch.setenv("CC", "no-such-compiler")
        case "it fails":
            monkeypatch.setenv("CC", failing_compiler(tmp_path / "cc"))
        case "no cache":
            monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    tried = why in ("it fails", "no cache")
    with pytest.warns(UserWarning, match="could not be compiled") if tried else nullcontext():
        assert cpu.library(torch.float64) is None
    # Rounding only; the steps in between multiply it.
    torch.testing.assert_close(trajectory(), expected, rtol=1e-9, atol=1e-12)


def trajectory():
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(n, 5, dtype=torch.float64)) for n in (4, 300, 1)]
    groups = [{"params": [p]} for p in params]
    optimizer = MetaAdamW(groups, modulator="attention", learning=Hypergradient())
    for _ in range(20):
        for param in params:
            param.grad = param.detach() + torch.randn_like(param)
        optimizer.step()
    assert (optimizer.modulation.alpha != 1).all()
    return torch.cat([*params, optimizer.modulation.alpha.unsqueeze(1).expand(-1, 5)])
