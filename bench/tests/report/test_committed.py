"""The committed report is what its command makes of the committed runs."""

from __future__ import annotations

import lzma
from pathlib import Path

from metaadamw_bench.report import write_report

ROOT = Path(__file__).parents[3]
COMMITTED = ROOT / "results" / "report"


def test_committed_report_comes_from_the_committed_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    # How a picture is encoded is up to the version of matplotlib: none is committed.
    write_report([Path("results")], tmp_path, pictures=False)
    committed = {
        "report.md": (COMMITTED / "report.md").read_bytes(),
        "statistics.json": lzma.decompress((COMMITTED / "statistics.json.xz").read_bytes()),
    }
    for name, content in committed.items():
        assert (tmp_path / name).read_text() == content.decode(), name
