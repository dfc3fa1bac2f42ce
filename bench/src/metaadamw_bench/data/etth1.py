"""ETTh1: seven measurements of a transformer station, hourly from July 2016 to June 2018."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from metaadamw_bench.data.files import DataSet, File, Layout, read_text

_TARGET = "OT"


def _read(paths: Sequence[Path]) -> Tensor:
    header, *rows = read_text(paths[0]).splitlines()
    column = header.split(",").index(_TARGET)
    return torch.tensor([float(row.split(",")[column]) for row in rows])


# The oil temperature, one number an hour.
DATA_SET: DataSet[Tensor] = DataSet(
    "etth1",
    (
        Layout(
            "compressed",
            (
                File(
                    "ETTh1.csv.gz",
                    "sha256:3c56c865b8f6fc9b760a07f055ff8a993d3cf2a747235dc382b98821ed35f029",
                ),
            ),
            _read,
        ),
        Layout(
            "published",
            (
                File(
                    "ETTh1.csv",
                    "sha256:f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066",
                    "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/"
                    "1d16c8f4f943005d613b5bc962e9eeb06058cf07/ETT-small/ETTh1.csv",
                ),
            ),
            _read,
        ),
    ),
)
