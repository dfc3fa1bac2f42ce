"""CIFAR-10: 60,000 photographs of 32 × 32 pixels in ten classes."""

from __future__ import annotations

import hashlib
import io
import lzma
import pickle
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metaadamw_bench.data.cache import cached
from metaadamw_bench.data.files import DataSet, File, Layout

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
_PIXELS = 3 * 32 * 32
_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
# Of all training images [50000, 32, 32, 3], whatever they were packed in.
_CONTENT = "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a"
_VERSION = "1"

Images = NDArray[np.uint8]
# Images [N, 3, 32, 32] and labels [N] of the training and of the test part.
Arrays = tuple[tuple[Images, Images], tuple[Images, Images]]


@dataclass(frozen=True)
class Photographs:
    """Images ``[N, 3, 32, 32]``, red green blue from 0 to 255, and their classes ``[N]``."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Cifar10:
    """Both parts in the official order."""

    train: Photographs
    test: Photographs


def _read(files: Sequence[File], arrays: Callable[[], Arrays]) -> Cifar10:
    def make() -> list[tuple[Tensor, Tensor]]:
        parts = arrays()
        images = parts[0][0].transpose(0, 2, 3, 1)
        if hashlib.sha256(np.ascontiguousarray(images).data).hexdigest() != _CONTENT:
            raise ValueError("the training images are not those of CIFAR-10")
        return [
            (torch.from_numpy(np.ascontiguousarray(i)), torch.from_numpy(labels.astype(np.int64)))
            for i, labels in parts
        ]

    made = cached("cifar10", [_VERSION, *(file.digest for file in files)], make)
    return Cifar10(*(Photographs(*part) for part in made))


# Planes G, R-G, B-G, each as its differences along both axes, modulo 256: packs tighter.


def _undo_differences(path: Path) -> Images:
    packed = np.frombuffer(lzma.decompress(path.read_bytes()), np.uint8).reshape(3, -1, 32, 32)
    green, red, blue = np.cumsum(np.cumsum(packed, 2, dtype=np.uint8), 3, dtype=np.uint8)
    return np.stack([red + green, green, blue + green], 1)


_DIFFERENCES = (
    *(
        File(f"train_{number}.xz", f"sha256:{digest}")
        for number, digest in enumerate(
            (
                "16a3495bbb41be56df6a396eb60f122c18a8aad83100e6ed7be2d1349129f6f6",
                "333377e8ff25a21c55ee77c65acac8e5e5add03c6341cbfbb8ff25aa210e079e",
                "8c75c3f3f86fcfff00e3b5df9ea882ea6296a73ed350218969a1ab6a18978ef8",
                "52f61156526336f0d9b1837e17923795e2e7d981acaff9545b03f88e322c672a",
                "74dc6f01ef8c3d4d4f391f1a2194382d76228836a4aacc27dcdbef0103f0c1ec",
            ),
            start=1,
        )
    ),
    File(
        "train_labels.npy",
        "sha256:fad921ba16b0efeebb54393d1351545d1fe1a357f6f81324c821e3e11b956c70",
    ),
    File("test.xz", "sha256:3380f27530b4f8aebecd592098548edd4390de04b278078ca8871b8f532487c5"),
    File(
        "test_labels.npy",
        "sha256:19004b019bd095265b4ce6637c9ff979c66abcbc8e658a665f791b487cdea5eb",
    ),
)


def _read_differences(paths: Sequence[Path]) -> Cifar10:
    def arrays() -> Arrays:
        *train, train_labels, test, test_labels = paths
        images = np.concatenate([_undo_differences(path) for path in train])
        return (images, np.load(train_labels)), (_undo_differences(test), np.load(test_labels))

    return _read(_DIFFERENCES, arrays)


# The official binary format: a record is the class, then the red, green and blue plane.


def _records(data: bytes) -> tuple[Images, Images]:
    records = np.frombuffer(data, np.uint8).reshape(-1, 1 + _PIXELS)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]


class _ArraysOnly(pickle.Unpickler):
    """Rebuilds NumPy arrays and Python's containers, and refuses everything that could act."""

    def find_class(self, module: str, name: str) -> Any:
        """Look up one of the three things an array is rebuilt with."""
        rebuild = np.zeros(0).__reduce__()[0]  # its module has another name in each NumPy
        allowed = {"_reconstruct": rebuild, "ndarray": np.ndarray, "dtype": np.dtype}
        if module.partition(".")[0] == "numpy" and name in allowed:
            return allowed[name]
        raise pickle.UnpicklingError(f"{module}.{name} does not belong into a CIFAR-10 batch")


def _pickled(data: bytes) -> tuple[Images, Images]:
    batch = _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
    return batch[b"data"].reshape(-1, 3, 32, 32), np.array(batch[b"labels"], np.uint8)


def _join(batches: Sequence[tuple[Images, Images]]) -> Arrays:
    *train, test = batches
    images, labels = zip(*train, strict=True)
    return (np.concatenate(images), np.concatenate(labels)), test


def _members(path: Path, names: Sequence[str]) -> Iterator[bytes]:
    with tarfile.open(path) as archive:
        found = {
            member.name: stream.read()
            for member in archive
            if member.name in names and (stream := archive.extractfile(member)) is not None
        }
    for name in names:
        yield found[name]


def _official(
    name: str,
    directory: str,
    suffix: str,
    digests: Sequence[str],
    archive: File,
    parse: Callable[[bytes], tuple[Images, Images]],
) -> Iterator[Layout[Cifar10]]:
    """An official format, as an archive and unpacked."""
    names = [f"{directory}/{batch}{suffix}" for batch in (*_BATCHES, "test_batch")]
    files = tuple(File(*pair) for pair in zip(names, digests, strict=True))

    def read_archive(paths: Sequence[Path]) -> Cifar10:
        return _read([archive], lambda: _join([parse(data) for data in _members(paths[0], names)]))

    def read_files(paths: Sequence[Path]) -> Cifar10:
        return _read(files, lambda: _join([parse(path.read_bytes()) for path in paths]))

    yield Layout(f"{name} archive", (archive,), read_archive)
    yield Layout(f"{name} archive, unpacked", files, read_files)


DATA_SET: DataSet[Cifar10] = DataSet(
    "cifar10",
    (
        Layout("re-packed", _DIFFERENCES, _read_differences),
        *_official(
            "binary",
            "cifar-10-batches-bin",
            ".bin",
            (
                "sha256:cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
                "sha256:a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
                "sha256:bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
                "sha256:014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
                "sha256:755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
                "sha256:8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
            ),
            File(
                "cifar-10-binary.tar.gz",
                "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            ),
            _records,
        ),
        *_official(
            "Python",
            "cifar-10-batches-py",
            "",
            (
                "md5:c99cafc152244af753f735de768cd75f",
                "md5:d4bba439e000b95fd0a9bffe97cbabec",
                "md5:54ebc095f3ab1f0389bbae665268c751",
                "md5:634d18415352ddfa80567beed471001a",
                "md5:482c414d41f54cd18b22e5b47cb7c3cb",
                "md5:40351d587109b95175f43aff81a1287e",
            ),
            File(
                "cifar-10-python.tar.gz",
                "sha256:6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
            ),
            _pickled,
        ),
    ),
)
