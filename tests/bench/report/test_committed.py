"""The committed report is what its command makes of the committed runs."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from metaadamw.bench.report import write_report

ROOT = Path(__file__).parents[3]
COMMITTED = ROOT / "results" / "report"


def test_committed_report_comes_from_the_committed_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    # Drawing takes two thirds of the time, and nobody looks: see below.
    for module in ("curves", "forest", "heatmaps"):
        monkeypatch.setattr(f"metaadamw.bench.report.{module}._draw", lambda *_: Figure())
    roots = sorted(Path("results").iterdir())
    write_report([root for root in roots if root != Path("results/report")], tmp_path)
    for name in ("report.md", "statistics.json"):
        assert (tmp_path / name).read_text() == (COMMITTED / name).read_text(), name
    # How a picture is encoded is up to the version of matplotlib.
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {
        p.name for p in (COMMITTED / "figures").iterdir()
    }
