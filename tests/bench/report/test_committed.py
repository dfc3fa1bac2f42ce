"""The committed reports are what their commands make of the committed runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from metaadamw.bench.report import write_report

ROOT = Path(__file__).parents[3]
ROOTS = sorted(
    path.name for path in (ROOT / "results").iterdir() if not path.name.endswith("-report")
)


@pytest.mark.parametrize("root", ROOTS)
def test_committed_report_comes_from_the_committed_runs(root, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    write_report([Path("results") / root], tmp_path)
    committed = ROOT / "results" / f"{root}-report"
    for file in ("report.md", "statistics.json"):
        assert (tmp_path / file).read_text() == (committed / file).read_text(), file
    # How a picture is encoded is up to the version of matplotlib.
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {
        p.name for p in (committed / "figures").iterdir()
    }
