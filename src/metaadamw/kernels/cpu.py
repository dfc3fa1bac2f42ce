"""Loads the C kernels, compiled once for this machine by its own C compiler.

Where there is none, torch's operations do the same work, slower; ``METAADAMW_KERNELS=0`` asks for
that.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

__all__ = ["addresses", "in_memory", "library", "pointer_array", "shares_threads"]

HERE = Path(__file__).parent
SOURCES = ("products.c", "encoder.c", "modulator.c", "online.c", "adamw.c")
HEADERS = ("targets.h", "sums.h", "encoder.h")
REALS = {torch.float32: "float", torch.float64: "double"}
FLAGS = (
    *("-O3", "-std=c11", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
    *("-fPIC", "-shared"),
)


@functools.cache
def library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The kernels for a precision; None where they cannot be had."""
    command, *options = shlex.split(os.environ.get("CC") or "cc")
    compiler = shutil.which(command)
    if dtype not in REALS or compiler is None or os.environ.get("METAADAMW_KERNELS") == "0":
        return None
    flags = [
        *options,
        *FLAGS,
        f"-DREAL={REALS[dtype]}",
        "-fopenmp" if shares_threads() else "-fopenmp-simd",
    ]
    try:
        return ctypes.CDLL(str(_compiled(compiler, flags)))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or b""
        warnings.warn(
            f"the kernels could not be compiled, torch's operations take their place: {error} "
            f"{said.decode(errors='replace')[:500]} (METAADAMW_KERNELS=0 does without)",
            stacklevel=2,
        )
        return None


@functools.cache
def shares_threads() -> bool:
    """Whether the kernels run on torch's threads; else on one.

    Its OpenMP runtime is loaded already and is found by its name: a second one would fight with it
    for the cores.
    """
    return (Path(torch.__file__).parent / "lib" / "libgomp.so.1").exists()


def _compiled(compiler: str, flags: list[str]) -> Path:
    """The shared library, from the user's cache or freshly compiled."""
    content = b"".join((HERE / name).read_bytes() for name in (*SOURCES, *HEADERS))
    machine = " ".join((compiler, *flags, platform.platform())).encode()
    key = hashlib.sha256(content + machine).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metaadamw"
    target = cache / f"kernels-{key}.so"
    if not target.exists():
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as place:  # other processes may do the same
            built = Path(place) / target.name
            sources = [str(HERE / name) for name in SOURCES]
            command = [compiler, *flags, "-o", str(built), *sources, "-lm"]
            subprocess.run(command, check=True, capture_output=True, timeout=120)
            built.replace(target)
    return target


_PLAIN = (Tensor, nn.Parameter)


def in_memory(tensor: Tensor) -> bool:
    """Whether a tensor is nothing but numbers of the host in their order."""
    return (
        type(tensor) in _PLAIN
        and tensor.is_cpu
        and tensor.is_contiguous()
        and not (tensor.is_neg() or tensor.is_conj() or tensor._is_zerotensor())
    )


def pointer_array(pointers: Sequence[int]) -> ctypes.Array[ctypes.c_void_p]:
    """Addresses as a C array; 0 is NULL."""
    return (ctypes.c_void_p * len(pointers))(*pointers)


def addresses(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    """Where tensors lie, as a C array."""
    return pointer_array([t.data_ptr() for t in tensors])
